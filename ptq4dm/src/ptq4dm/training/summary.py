"""What a run of the engine `ldm` prints and leaves in metrics.json when it is done."""

from pathlib import Path
from typing import Any

from torch import nn

from paperkit.results.metrics import Metrics, Row
from paperkit.results.report import print_metrics
from ptq4dm.method.bit_schedule import BitSchedule
from ptq4dm.method.noise_statistics import NoiseStatistics
from ptq4dm.training.quantization import summary


def write_training(
    folder: Path,
    unet: nn.Module,
    statistics: dict[int, NoiseStatistics],
    schedule: BitSchedule,
    options: Any,
    seconds: float,
) -> None:
    """Rows on the noise of each bit width; layers by bits and the schedule in `extra`."""
    rows = []
    for width, found in statistics.items():
        arm = f"W{options.quantization.weight_bits}A{width}"
        rows += [
            Row(arm, "SNR of the prediction, lowest step", [found.snr.min().item()]),
            Row(arm, "slope k, lowest", [found.k.min().item()]),
            Row(arm, "slope k, highest", [found.k.max().item()]),
            Row(arm, "steps with a negative slope", [float((found.k < 0).sum())]),
        ]
    rows.append(Row("schedule", "bits of activations, mean over steps", [schedule.mean_bits()]))
    extra = {"layers": summary(unet), "schedule": [[t, bits] for t, bits in schedule.bits().items()]}
    metrics = Metrics("ptq4dm", [options.seed], seconds, rows, extra=extra)
    metrics.write(folder / "metrics.json")
    print_metrics(metrics, "noise of the quantised predictions, on calibration trajectories")
