"""A hook that shows how far training is, and prints a line after each validation."""

import time
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paperkit.training.openmmlab import own_scope


@own_scope("stpt").HOOKS.register_module()
class ProgressHook(Hook):
    """Steps done, the loss, the time left; in the first process, as a bar where standard error is a terminal."""

    priority = "VERY_LOW"

    def before_train(self, runner: Any) -> None:
        """Starts the bar at the step that the run is at."""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        console = Console(stderr=True)
        self.bar = Progress(*columns, console=console, disable=not (console.is_terminal and is_main_process()))
        self.task = self.bar.add_task("training", total=runner.max_iters, completed=runner.iter)
        self.bar.start()
        self.begun, self.first = time.monotonic(), runner.iter

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """One step more, and its loss."""
        if not self.bar.disable:
            loss = float((outputs or {}).get("loss", float("nan")))
            self.bar.update(self.task, completed=runner.iter + 1, description=f"training, loss {loss:.3f}")

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """A line with what was found."""
        if is_main_process():
            seconds = (time.monotonic() - self.begun) / max(runner.iter - self.first, 1)
            found = ", ".join(f"{name} {value:.2f}" for name, value in (metrics or {}).items())
            print(f"step {runner.iter} of {runner.max_iters}, {seconds:.2f} s a step: {found}", flush=True)

    def after_train(self, runner: Any) -> None:
        """Closes the bar."""
        self.bar.stop()
