"""FID, sFID, Inception score, precision and recall of images, with the conditions that they hold under.

IMAGES is a folder of `ptq4dm sample`, a folder of pictures, or an npz file (`arr_0`: N, H, W, 3 in uint8).
--reference is one of these, or an npz file of statistics (`mu`, `sigma`, `mu_s`, `sigma_s`), such as OpenAI's
reference batches. Figures are printed and written as JSON; --compare FILE puts those of another run beside them, and
refuses where count, rounding, extractor or reference differ.
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("images", type=str, help="folder or npz file of the images")
    parser.add_argument("--reference", type=str, required=True, help="folder or npz file to judge against")
    parser.add_argument(
        "--extractor", type=str, default="inception", help="inception, pixels, or your own module:function"
    )
    parser.add_argument("--weights", type=str | None, default=None, help="file of the Inception weights; else download")
    parser.add_argument("--batch", type=int, default=50, help="images at a time")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--compare", type=str | None, default=None, help="scores.json of another run")
    parser.add_argument("--keep-statistics", type=str | None, default=None, help="npz file for the reference's")
    parser.add_argument("--output", type=str, default="runs/ptq4dm/score", help="folder for scores.json")


def run(arguments: Any) -> int:
    import dataclasses
    import importlib.util
    from pathlib import Path

    from paperkit.command.engines import device
    from paperkit.errors import UserError
    from paperkit.results.report import table

    if importlib.util.find_spec("torch_fidelity") is None:
        raise UserError('scores need torch-fidelity: pip install "ptq4dm[score]"')
    if arguments.batch < 1:
        raise UserError(f"--batch {arguments.batch} is below 1")
    from ptq4dm.deployment import scoring
    from ptq4dm.training.progress import progress

    images = scoring.Images.at(arguments.images)
    extractor = scoring.extractor_named(arguments.extractor, arguments.weights, device(arguments.device))

    def features(of: scoring.Images, what: str) -> scoring.Features:
        with progress(what, of.count) as advance:
            return scoring.extract(of, extractor, arguments.batch, advance)

    reference = scoring.read_statistics(arguments.reference, arguments.extractor)
    if reference is None:
        real = scoring.Images.at(arguments.reference)
        reference = scoring.reference_of_images(real, features(real, "reference"), arguments.extractor)
    elif reference.has_images:
        pool = features(scoring.Images.at(arguments.reference), "reference").pool
        reference = dataclasses.replace(reference, features=pool)
    under = scoring.conditions(images, reference, arguments.extractor)
    other = {} if arguments.compare is None else scoring.read_scores(arguments.compare, under)
    found = scoring.score(features(images, "images"), reference, arguments.extractor)
    rows = [(name, value, *([other.get(name, "")] if other else [])) for name, value in found.items()]
    table(rows, ("figure", "value", *([arguments.compare] if other else [])), arguments.images)
    print("under: " + ", ".join(f"{name} {value}" for name, value in under.items()))
    path = Path(arguments.output) / "scores.json"
    scoring.write_scores(path, found, under, arguments.images)
    print(path)
    if arguments.keep_statistics is not None:
        scoring.write_statistics(arguments.keep_statistics, reference)
    return 0
