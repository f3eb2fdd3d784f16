"""What counts as the same run: everything but times and places."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from paperkit.files.weights import save_checkpoint, save_weights
from paperkit.results.metrics import Metrics, Row
from paperkit.testing.runs import check_same_runs, differences


def write_run(run: Path, seconds: float) -> Path:
    """A run folder as Lightning and our own code leave it."""
    (run / "csv").mkdir(parents=True)
    for name in ("started", "finished", "env.json"):
        (run / name).write_text(str(seconds))
    (run / "config.yaml").write_text(f"engine: images\noutput: {run}\nlr: 0.1\n")
    rows = [Row("net", "accuracy", [91.5], "%"), Row("net", "training", [seconds], "s")]
    Metrics("net", [0], seconds, rows, extra={"curve": [1.0, float("nan")]}).write(run / "metrics.json")
    (run / "csv" / "metrics.csv").write_text(f"step,loss,wall_time\n1,0.5,{seconds}\n2,0.25,{seconds}\n")
    state = {"w": torch.tensor([1.0, float("nan")]), "time_embed.weight": torch.ones(2)}
    callbacks = {"keeper": {"dirpath": str(run / "checkpoints"), "best": 0.5}}
    content = {"state_dict": state, "callbacks": callbacks, "global_step": 4, "train_time": seconds}
    save_checkpoint(run / "checkpoints" / "last.ckpt", content)
    save_weights(run / "model" / "model.safetensors", state)
    stamp = f"20260101_00000{int(seconds)}"
    (run / stamp).mkdir()
    (run / stamp / "scalars.json").write_text(json.dumps({"step": 1, "loss": 0.5, "time": seconds}) + "\n")
    (run / stamp / "run.log").write_text(str(seconds))
    for part in range(int(seconds)):
        writer = SummaryWriter(str(run / "logs"), filename_suffix=f".{part}")
        writer.add_scalar("loss", 0.5, 1, walltime=seconds)
        writer.add_scalar("seconds", seconds, 1)
        writer.close()
    return run


def test_times_places_and_parts_of_logs_do_not_count(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a" / "whole", 1.0), write_run(tmp_path / "b" / "cut", 2.0)
    check_same_runs(first, second)


def edit(path: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda run: (run / path).write_text(change((run / path).read_text()))


def add_to_the_curve(logs: Path, value: float) -> None:
    """A further point, written when this returns."""
    with SummaryWriter(str(logs)) as writer:
        writer.add_scalar("loss", value, 2)


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (edit("config.yaml", lambda text: text.replace("0.1", "0.2")), "config.yaml: [0].lr is 0.1 and 0.2"),
    (edit("metrics.json", lambda text: text.replace("91.5", "91.6")), "metrics.json: [0].rows[0].values[0]"),
    (edit("csv/metrics.csv", lambda text: text.replace("0.25", "0.26")), "csv/metrics.csv: [0][1].loss"),
    (edit("csv/metrics.csv", lambda text: text[: text.index("2,")]), "csv/metrics.csv: [0] has 2 entries and 1"),
    (lambda run: (run / "model" / "model.safetensors").unlink(), "model/model.safetensors: only in"),
    (lambda run: (run / "extra.txt").write_text(""), "extra.txt: only in"),
    (
        lambda run: save_weights(run / "model" / "model.safetensors", {"w": torch.tensor([1.0, float("nan")])}),
        "time_embed.weight is only in the first",
    ),
    (
        lambda run: save_weights(
            run / "model" / "model.safetensors", {"w": torch.zeros(2), "time_embed.weight": torch.ones(2)}
        ),
        "[0].w differs in 2 of 2 numbers",
    ),
    (
        lambda run: save_weights(
            run / "model" / "model.safetensors",
            {"w": torch.tensor([1.0, float("nan")]), "time_embed.weight": torch.zeros(2)},
        ),
        "[0].time_embed.weight differs in 2 of 2 numbers",
    ),
    (
        lambda run: save_checkpoint(run / "checkpoints" / "last.ckpt", {"global_step": 5}),
        "checkpoints/last.ckpt: [0].state_dict is only in the first",
    ),
    (lambda run: shutil.rmtree(run / "logs"), "logs/events.out.tfevents: only in"),
    (lambda run: add_to_the_curve(run / "logs", 0.75), "logs/events.out.tfevents: loss has"),
]


@pytest.mark.parametrize(("change", "says"), CHANGES, ids=[says.split(":")[0] for _, says in CHANGES])
def test_each_other_difference_is_named(change: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "whole", 1.0), write_run(tmp_path / "cut", 1.0)
    change(second)
    lines = differences(first, second)
    assert len(lines) == 1 and says in lines[0], lines
    with pytest.raises(AssertionError, match="differ"):
        check_same_runs(first, second)
    name = lines[0].split(":")[0]
    check_same_runs(first, second, ignore=[name])
