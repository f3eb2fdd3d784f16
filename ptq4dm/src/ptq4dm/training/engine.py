"""Quantise a real diffusion model: calibration, learned rounding, activation steps, noise statistics.

Options: --model.* the float model, --sampler.* the DDIM sampler that it will be used with, --quantization.* bits,
--calibration.* what is sampled, --reconstruction.* how long rounding and steps are learned, --evaluation.* what `eval`
samples. Stages are kept as they finish, the reconstruction unit by unit, the sampling batch by batch: a run that was
killed goes on with --resume to the same bits. Under torchrun the processes share the sampling.
"""

import math
import time
from pathlib import Path
from typing import Any

from paperkit.command.engines import device as device_of
from paperkit.command.engines import refuse_changes
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from ptq4dm.training.settings import (
    BitsConfig,
    CalibrationConfig,
    EvaluationConfig,
    ModelConfig,
    ReconstructionConfig,
    SamplerConfig,
)

GROUPS = {
    "model": ModelConfig,
    "sampler": SamplerConfig,
    "quantization": BitsConfig,
    "calibration": CalibrationConfig,
    "reconstruction": ReconstructionConfig,
    "evaluation": EvaluationConfig,
}
COUNTS = {
    "calibration": ("images", "records", "range_records", "pairs", "batch"),
    "reconstruction": ("weight_batch", "step_batch"),
    "evaluation": ("images",),
}


def add_arguments(parser: Any) -> None:
    """Every option of a run."""
    parser.add_argument("--seed", type=int, default=0, help="of noise, classes and draws")
    parser.add_argument("--accelerator", type=str, default="auto", help="where networks run: auto, cpu, cuda, cuda:1")
    for name, kind in GROUPS.items():
        parser.add_class_arguments(kind, name)


def check(options: Any, run: RunFolder | None) -> None:
    """Refuse what cannot be, a model that cannot be read included, before there is a run folder.

    Raises:
        UserError: the first thing that cannot be.
    """
    refuse_changes(options, run, free=("accelerator", "evaluation"))
    for group, names in COUNTS.items():
        for name in names:
            if (value := getattr(getattr(options, group), name)) < 1:
                raise UserError(f"{group}.{name} {value} is below 1")
    for name in ("weight_iterations", "step_iterations"):
        if (value := getattr(options.reconstruction, name)) < 0:
            raise UserError(f"reconstruction.{name} {value} is below 0, which leaves the stage out")
    _check_sizes(options)
    from ptq4dm.method.range_search import check_bits
    from ptq4dm.training.quantization import quant_config, widths

    quant_config(options.quantization)
    for width in widths(options.quantization):
        check_bits(width, "quantization.candidates")
    budget = options.quantization.mean_bits
    if budget is not None and not min(widths(options.quantization)) <= budget <= max(widths(options.quantization)):
        raise UserError(f"quantization.mean_bits {budget} is outside of the candidates {widths(options.quantization)}")
    device_of(options.accelerator)
    from ptq4dm.training.diffusion import load_diffusion

    diffusion = load_diffusion(options.model)  # seconds; a bad file leaves no folder
    diffusion.check_guidance(options.sampler.guidance)
    steps, trained = options.sampler.steps, int(diffusion.schedule["num_train_timesteps"])
    if trained % steps:
        near = min((n for n in range(1, trained + 1) if trained % n == 0), key=lambda n: abs(n - steps))
        raise UserError(f"sampler.steps {steps} does not divide the {trained} of training; {near} does")


def _check_sizes(options: Any) -> None:
    """What the parts ask of each other."""
    sampler, calibration, learning = options.sampler, options.calibration, options.reconstruction
    if sampler.steps < 1:
        raise UserError(f"sampler.steps {sampler.steps} is below 1")
    if not 0 <= sampler.eta <= 1:
        raise UserError(f"sampler.eta {sampler.eta} is outside 0 to 1")
    if not math.isfinite(sampler.guidance):
        raise UserError(f"sampler.guidance {sampler.guidance} is no number")
    for name in ("weight_lr", "step_lr"):
        if not (math.isfinite(value := getattr(learning, name)) and value > 0):
            raise UserError(f"reconstruction.{name} {value} is not above 0")
    calls = calibration.images * sampler.steps * (1 if sampler.guidance == 1 else 2)
    if calibration.records > calls:
        raise UserError(
            f"calibration.records {calibration.records}: {calibration.images} images give {calls} calls; take more"
        )
    needed = {
        "calibration.range_records": calibration.range_records,
        "reconstruction.weight_batch": learning.weight_batch if learning.weight_iterations else 0,
        "reconstruction.step_batch": learning.step_batch if learning.step_iterations else 0,
    }
    for name, count in needed.items():
        if count > calibration.records:
            raise UserError(f"calibration.records {calibration.records} is smaller than {name} {count}")


def train(run: RunFolder, options: Any, resuming: bool) -> None:
    """Collect calls, learn the rounding and the steps, collect noise statistics; what is done is not done again."""
    from ptq4dm.training import processes as several

    processes = several.join()
    try:
        _train(run, options, processes)
    finally:
        several.leave()


def _train(run: RunFolder, options: Any, processes: Any) -> None:
    from ptq4dm.method.quant_model import quantize, report
    from ptq4dm.training import quantization as q
    from ptq4dm.training.collection import collect
    from ptq4dm.training.diffusion import load_diffusion
    from ptq4dm.training.statistics import collect_statistics, identity, schedule_of
    from ptq4dm.training.summary import write_training

    start, model = time.monotonic(), run.path / "model"
    diffusion = load_diffusion(options.model)
    about = identity(diffusion, options.quantization, options.sampler)
    unet = quantize(diffusion.unet.to(device_of(options.accelerator)), q.quant_config(options.quantization))
    if processes.first:
        print("\n".join(report(unet).lines()), flush=True)
    calibration, learning = options.calibration, options.reconstruction
    made = (model / "weights.safetensors").is_file()
    processes.wait()  # all have looked before the first one goes on and writes it
    if not made:
        if processes.first:
            q.check_memory(unet, diffusion.example(), calibration.records, learning, run.path)
        records = collect(diffusion, options.sampler, calibration, options.seed, run.path / "calibration", processes)
        if processes.first:
            ranges = q.learn(
                unet, records, options.quantization, learning, calibration.range_records, options.seed, run.path
            )
            q.save_quantized(model, unet, ranges)
        processes.wait()
    # Read again even where it was just made, so that a resumed run goes on with the very same network.
    ranges = q.load_quantized(model, unet, options.quantization)
    statistics = collect_statistics(
        diffusion, ranges, options.sampler, calibration, options.seed, about, run.path, processes
    )
    if processes.first:
        schedule = schedule_of(statistics, diffusion, options.quantization, options.sampler)
        schedule.save(model / "schedule.json")
        write_training(run.path, unet, statistics, schedule, options, time.monotonic() - start)


def evaluate(run: RunFolder | None, options: Any) -> None:
    """Sample float, quantised and corrected from the same noise; table, metrics.json, a grid of the images.

    Raises:
        UserError: weights outside of a run, or a run that is not finished.
    """
    from ptq4dm.training.arms import compare
    from ptq4dm.training.finished import load_run

    if run is None:
        raise UserError(f"{options.ckpt} lies in no run folder of `ptq4dm train --engine ldm`")
    compare(load_run(run.path, options.model.path, device_of(options.device)), options, Path(options.output))
