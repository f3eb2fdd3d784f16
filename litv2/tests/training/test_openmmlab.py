"""The kit's engine around mmengine's Runner with mmengine alone: by epochs, in a registry scope of its own.

As a script (by torchrun) this file is one process of a run.
"""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from paperkit.results.metrics import Metrics
from paperkit.training import openmmlab
from paperkit.training.openmmlab import Seeded, own_scope, refuse_paths_to_code
from paperkit.training.runner import RunnerEngine, changed

MADE = own_scope("made")
ENGINE = RunnerEngine("made", "made.json", ("paperkit.training.openmmlab",), ("made", "mmengine"), metric="tad/score")
SCORES = {4: 1.0, 8: 3.1, 12: 2.0, 16: 0.5}  # by steps made: the best is in the middle


@MADE.DATASETS.register_module()
class Made(Seeded):
    """Eight vectors; labels are their sums."""

    def load_data_list(self) -> list[dict[str, Any]]:
        return [{"number": i} for i in range(8)]


@MADE.TRANSFORMS.register_module()
class Noise:
    """Random by numpy and torch, and sometimes nothing at all, as where a crop holds no box."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        x = torch.full((4,), float(results["number"])) / 8 + torch.rand(4)
        return None if np.random.rand() < 0.3 else {"inputs": x}


@MADE.MODELS.register_module()
class Line(BaseModel):
    """A linear layer under dropout, which counts its training steps."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.line, self.dropout = nn.Linear(4, 1), nn.Dropout(dropout)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, inputs: list[Tensor], mode: str = "tensor") -> Any:
        x = torch.stack(inputs)
        if mode == "predict":
            return [{"steps": self.steps.item()} for _ in x]
        self.steps += 1
        return {"loss": (self.line(self.dropout(x)) - x.sum(1, keepdim=True)).square().mean()}


@MADE.METRICS.register_module()
class Score(BaseMetric):
    """Of a type that a safe reader of checkpoints refuses."""

    default_prefix = "tad"

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += data_samples

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        return {"score": np.float32(SCORES[int(results[0]["steps"])])}


@MADE.HOOKS.register_module()
class Die(Hook):
    """Ends the process's run at a step, or before an evaluation, when so many steps were made."""

    priority = "HIGHEST"

    def __init__(self, steps: int, judged: bool) -> None:
        self.steps, self.judged = steps, judged

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if self.judged and runner.iter == self.steps:
            raise InterruptedError

    def before_val_epoch(self, runner: Any) -> None:
        if not self.judged and runner.iter == self.steps:
            raise InterruptedError


def write_config(folder: Path, batch: int = 2, dropout: float = 0.5, die: Any = None) -> Path:
    """Four epochs of four steps, judged after each."""
    loader = dict(
        batch_size=batch,
        num_workers=0,
        sampler=dict(type="PlacedEpochSampler", shuffle=True, seed=3),
        dataset=dict(type="Made", seed=3, pipeline=[dict(type="Noise")]),
    )
    hooks = [dict(type="SeedIteration", seed=3), *([dict(type="Die", **die)] if die else [])]
    best = dict(save_best="tad/score", rule="greater", backend_args=dict(backend="whole_files"))
    content = dict(
        default_scope="made",
        seed=3,
        randomness=dict(seed=3),
        model=dict(type="Line", dropout=dropout),
        train_dataloader=loader,
        val_dataloader={**loader, "sampler": dict(type="DefaultSampler", shuffle=False)},
        test_dataloader={**loader, "sampler": dict(type="DefaultSampler", shuffle=False)},
        val_evaluator=dict(type="Score"),
        test_evaluator=dict(type="Score"),
        optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=0.01)),
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=4, val_interval=1),
        val_cfg=dict(type="ValLoop"),
        test_cfg=dict(type="TestLoop"),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1, **best)),
        custom_hooks=hooks,
        env_cfg=dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0)),
    )
    path = folder / f"batch{batch}{'_dies' if die else ''}.py"
    Config(content).dump(str(path))
    return path


def options(config: Path | None = None, **more: Any) -> SimpleNamespace:
    named = [str(config)] if config else []
    return SimpleNamespace(**{**dict(config=named, cfg_options=[], launcher="none", amp=False), **more})


def train(folder: Path, name: str, config: Path, **more: Any) -> RunFolder:
    run = RunFolder.create(folder, "made", name)
    ENGINE.train(run, options(config, **more), resuming=False)
    return run


def weights(run: RunFolder, file: str = "epoch_4.pth") -> dict[str, Tensor]:
    return openmmlab.read_checkpoint(run.path / file, allow=openmmlab.get_torch_safe_globals())["state_dict"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def whole(folder: Path) -> RunFolder:
    return train(folder, "whole", write_config(folder))


@pytest.mark.parametrize(("steps", "judged"), [(8, False), (9, True), (16, False)])
def test_cut_and_resumed_is_the_same_run(steps: int, judged: bool, folder: Path, whole: RunFolder) -> None:
    """Before the best checkpoint is judged, in the step after, and before the last evaluation."""
    dies, name = write_config(folder, die=dict(steps=steps, judged=judged)), f"cut{steps}{judged}"
    with pytest.raises(InterruptedError):
        train(folder, name, dies)
    run = RunFolder.open(folder / "made" / name)
    ENGINE.train(run, options(write_config(folder)), resuming=True)
    first, second = weights(whole), weights(run)
    assert all(torch.equal(value, second[key]) for key, value in first.items()) and first["steps"] == 16
    assert [path.name for path in run.path.glob("best_*")] == ["best_tad_score_epoch_2.pth"]
    assert [path.name for path in whole.path.glob("best_*")] == ["best_tad_score_epoch_2.pth"]


def test_last_and_best_are_evaluated(folder: Path, whole: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for best in (False, True):
        ENGINE.evaluate(whole, options(ckpt=None, best=best, output=str(folder / "judged")))
    assert "best_tad_score_epoch_2.pth" in capsys.readouterr().out
    found = Metrics.read(folder / "judged" / "metrics.json")
    assert found.row("last", "tad/score").values == [0.5]
    assert found.row("best", "tad/score").values == pytest.approx([3.1])
    empty = RunFolder.create(folder, "made", "empty")
    with pytest.raises(UserError, match=r"has no whole best_tad/score_\*\.pth"):
        ENGINE.evaluate(empty, options(ckpt=None, best=True, output="."))
    with pytest.raises(UserError, match="name a checkpoint with --ckpt"):
        ENGINE.evaluate(None, options(ckpt=None, best=False, output="."))


def test_two_processes_train_as_one_without_mmsegmentation(folder: Path) -> None:
    """Two gloo processes on batches of one: the samples, augmentation and weights of one on batches of two."""
    one = train(folder, "one", write_config(folder, dropout=0.0))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    config = write_config(folder, batch=1, dropout=0.0)
    ended = subprocess.run([*words, str(folder), str(config)], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Failed to" not in ended.stdout + ended.stderr  # mmengine's word where it misses a scope's registry
    first, second = weights(one), weights(RunFolder.open(folder / "made" / "two"))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-6)


def test_half_precision_where_there_is_no_gpu(folder: Path) -> None:
    config = changed(Config.fromfile(str(write_config(folder))), [], amp=True)
    assert config.optim_wrapper.type == ("AmpOptimWrapper" if torch.cuda.is_available() else "Bfloat16OptimWrapper")
    run = train(folder, "half", write_config(folder), amp=True, cfg_options=["train_cfg.max_epochs=1"])
    assert weights(run, "epoch_1.pth")["line.weight"].dtype == torch.float32


def test_weights_to_start_from(folder: Path, whole: RunFolder) -> None:
    """Strictly; and what a network would start from is not read where a checkpoint gives the weights."""
    config, start = write_config(folder), ["train_cfg.max_epochs=1", "optim_wrapper.optimizer.lr=0.0"]
    started = train(folder, "started", config, cfg_options=[*start, f"load_from={whole.path / 'epoch_2.pth'}"])
    assert torch.equal(weights(started, "epoch_1.pth")["line.weight"], weights(whole, "epoch_2.pth")["line.weight"])
    torch.save({"state_dict": {"line.weight": torch.zeros(1, 4)}}, folder / "foreign.pth")
    with pytest.raises(UserError, match=r"line\.bias"):
        train(folder, "foreign", config, cfg_options=[*start, f"load_from={folder / 'foreign.pth'}"])


@pytest.mark.parametrize(
    "entry",
    [
        dict(type="subprocess.Popen"),
        dict(type="antigravity"),  # a module, which mmengine would import
        dict(type="os"),
        dict(type=""),
        dict(type="mmengine.mkdir_or_exist"),  # an object of a package that has a scope
        dict(type="other.Line"),
        dict(type=["Line"]),
        dict(constructor="evil.Constructor"),
        dict(_scope_="other"),
        dict(default_scope="mmseg"),
    ],
    ids=str,
)
def test_what_is_no_registered_name_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"made\.json: .* to use it: --config FILE\.py"):
        refuse_paths_to_code({"hooks": ({"inner": [entry]},)}, "made.json", ("made", "mmengine"))


def test_registered_names_of_a_scope_are_let_through() -> None:
    names = [dict(type=name) for name in ("Line", "made.Line", "mmengine.CheckpointHook", "Adam")]
    refuse_paths_to_code({"default_scope": "made", "parts": names}, "made.json", ("made", "mmengine"))
    assert own_scope("made") is MADE


if __name__ == "__main__":
    train(Path(sys.argv[1]), "two", Path(sys.argv[2]), launcher="pytorch")
    assert "mmseg" not in sys.modules
