"""Draw images: a grid (grid.png), all of them in samples.npz, on request each as a PNG file.

--ckpt is a folder of a pipeline of diffusers, a CompVis file (model.ckpt), or a run of `ptq4dm train --engine ldm`,
which is sampled quantised and corrected. --packed takes the U-Net from a folder of `ptq4dm pack`. --statistics corrects
whatever U-Net there is by a file of noise statistics.

samples.npz has `arr_0` (N, H, W, 3) in uint8 and `arr_1`, the labels, as OpenAI's evaluator reads it. Without other
numbers, class-conditional models take 20 steps, eta 0 and guidance 3, others 200 steps and eta 1; runs what they were
made for.
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("--ckpt", type=str, required=True, help="pipeline folder, CompVis file, or run folder")
    parser.add_argument("--packed", type=str | None, default=None, help="folder of `ptq4dm pack` for the U-Net")
    parser.add_argument("--statistics", type=str | None, default=None, help="noise statistics to correct by")
    parser.add_argument("--correct", type=bool, default=True, help="of a run: correct by its statistics")
    parser.add_argument("--model", type=str | None, default=None, help="which model a CompVis file is, if unclear")
    parser.add_argument("--configuration", type=str | None, default=None, help="official YAML of another CompVis file")
    parser.add_argument("--count", type=int, default=16, help="images")
    parser.add_argument("--batch", type=int, default=16, help="images at a time; changes nothing but speed")
    parser.add_argument("--steps", type=int | None, default=None, help="of the sampler")
    parser.add_argument("--eta", type=float | None, default=None, help="0 for DDIM, 1 for DDPM")
    parser.add_argument("--guidance", type=float | None, default=None, help="weight of the class; 1 for none")
    parser.add_argument("--classes", type=str, default="balanced", help="balanced, random, or numbers as 207,360")
    parser.add_argument("--rounding", type=str, default="round", help="of pixels: round, or truncate as OpenAI")
    parser.add_argument("--seed", type=int, default=0, help="of noise and random classes")
    parser.add_argument("--files", action="store_true", help="write every image as a PNG file as well")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that can run code")
    parser.add_argument("--output", type=str, default="runs/ptq4dm/sample", help="folder to write")


def run(arguments: Any) -> int:
    from pathlib import Path

    from paperkit.command.engines import device
    from ptq4dm.deployment import sampling, sources
    from ptq4dm.training.progress import progress

    described = {"name": arguments.model, "configuration": arguments.configuration}
    source = sources.open_source(
        arguments.ckpt, arguments.packed, arguments.statistics, arguments.correct, device(arguments.device),
        arguments.trust_pickle, **described,
    )  # fmt: skip
    given = {name: getattr(arguments, name) for name in ("steps", "eta", "guidance")}
    chosen = sampling.Sampling(
        arguments.count, arguments.batch, seed=arguments.seed, rounding=arguments.rounding,
        classes=tuple(arguments.classes.split(",")),
        **source.defaults | {name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    source.check(chosen)
    print("; ".join(f"{name} {value}" for name, value in source.about.items()))
    with progress("images", chosen.count) as advance:
        sampling.sample(source.pipeline, chosen, arguments.output, source.about, arguments.files, advance)
    print(Path(arguments.output) / sampling.GRID)
    return 0
