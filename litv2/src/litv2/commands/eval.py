"""Evaluate a run from its saved weights (the newest finished one, or a run folder), or weights on a config's data.

Embedded runs give their tables and figures again; image runs top-1 and top-5; detection runs average precision;
segmentation runs mIoU. A released file or a folder of save_pretrained: litv2 eval --ckpt FILE --config FILE.yaml
"""

from pathlib import Path
from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("--ckpt", type=str | None, default=None, help="run folder or weights (default: the newest run)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--config", type=str | None, default=None, help="image config whose data weights are tested on")
    parser.add_argument("--data.root", type=str | None, default=None, help="data folder in place of the config's")
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that can run code")


def run(arguments: Any) -> int:
    import json
    import time

    from litv2.experiment.engine import COSTS
    from litv2.experiment.run_folders import finish, read_experiment
    from paperkit.errors import UserError
    from paperkit.files.runs import resolve_run

    if arguments.config is not None:
        return evaluate_file(arguments)
    start = time.monotonic()
    folder, _ = resolve_run(arguments.ckpt, arguments.root, "litv2")
    if folder is None:
        raise UserError(f"{arguments.ckpt} lies in no run folder; add --config FILE.yaml to test it on that data")
    content = folder.read_config()
    if content.get("engine") == "mmengine":
        return evaluate_segmentation(folder.path)
    if "detection" in content:
        return evaluate_detection(folder.path, with_root(content, arguments.data.root))
    if "network" in content:
        from litv2.models.classifier import LITv2
        from litv2.training.images import folder_of

        model = LITv2.from_pretrained(folder_of(folder.path))
        return print_accuracy(model, with_root(content, arguments.data.root)["data"], str(folder.path))
    config = read_experiment(folder)
    import torch

    from litv2.experiment.run import measure_seed

    torch.set_num_threads(1)
    results = [measure_seed(seed, folder.path, config) for seed in config.seed_list]
    try:
        costs = json.loads((folder.path / COSTS).read_text())  # the clock ran while training; its numbers stand
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.path / COSTS} cannot be read ({error}); the run is not finished") from error
    finish(folder, results, costs, config, "litv2 eval", time.monotonic() - start)
    return 0


def with_root(content: dict[str, Any], root: str | None) -> dict[str, Any]:
    """A config with another data folder, if one is named."""
    return content if root is None else {**content, "data": {**content["data"], "root": root}}


def evaluate_file(arguments: Any) -> int:
    """Weights on the evaluation images of an image config."""
    from litv2.models.conversion import load_classifier
    from litv2.training.train_images import build_parser
    from paperkit.errors import UserError

    if arguments.ckpt is None:
        raise UserError("--config needs --ckpt: a released file or a folder of save_pretrained")
    parser = build_parser("litv2 eval")
    options = ["--config", arguments.config]
    if arguments.data.root is not None:
        options += ["--data.root", arguments.data.root]
    data = vars(parser.parse_args(options).data)
    return print_accuracy(load_classifier(Path(arguments.ckpt), arguments.trust_pickle), data, arguments.ckpt)


def print_accuracy(model: Any, data: dict[str, Any], title: str) -> int:
    """Top-1 and top-5 of a classifier on a data section."""
    import torch

    from litv2.training.images import evaluate
    from paperkit.data.images import ImageData
    from paperkit.results.report import table

    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    found = evaluate(model, ImageData(**options), "cuda" if torch.cuda.is_available() else "cpu")
    table([(name, value) for name, value in found.items()], ("metric", "%"), title)
    return 0


def evaluate_detection(run: Path, content: dict[str, Any]) -> int:
    """Average precision of a detection run's last weights."""
    import torch

    from litv2.training.coco import CocoData
    from litv2.training.detection import DetectionConfig, DetectionTraining, average_precisions
    from paperkit.files.weights import load_strict, read_weights
    from paperkit.results.report import table

    config = DetectionConfig(**{**content["detection"], "weights": None})
    data = CocoData(**content["data"])
    data.setup()
    training = DetectionTraining(config, data, 1)
    weights = run / "detector.safetensors"
    load_strict(training.detector, read_weights(weights), str(weights))
    found = average_precisions(training.detector.eval(), data, "cuda" if torch.cuda.is_available() else "cpu")
    table(list(found.items()), ("metric", "%"), str(run))
    return 0


def evaluate_segmentation(run: Path) -> int:
    """mIoU of a segmentation run's newest checkpoint, by mmengine's own test loop."""
    from mmengine.runner import Runner

    from litv2.training.segmentation import KEPT, newest_whole, read_config, refuse_code
    from paperkit.errors import UserError
    from paperkit.results.report import table

    checkpoint = newest_whole(run)
    if checkpoint is None:
        raise UserError(f"{run} has no whole iter_*.pth")
    refuse_code(str(checkpoint))
    config = read_config(str(run / KEPT), [])
    config.work_dir, config.load_from, config.resume = str(run), str(checkpoint), False
    config.model.backbone.pretrained = None
    found = Runner.from_cfg(config).test()
    table([(name, float(value)) for name, value in found.items()], ("metric", "%"), str(checkpoint))
    return 0
