"""A hook that draws what each validation found: pictures of the first videos, below `timelines/` of the run."""

from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from paperkit.training.openmmlab import own_scope
from stpt.training.metric import TADMetric
from stpt.training.run_figures import draw_timelines

FOUND = "validation.json"


@own_scope("stpt").HOOKS.register_module()
class TimelineHook(Hook):
    """Keeps the detections of the last validation as `validation.json`, and draws timelines of them.

    Args:
        videos: number of videos; 0 draws none.
    """

    priority = "LOW"

    def __init__(self, videos: int = 2) -> None:
        self.videos = videos

    def before_val(self, runner: Any) -> None:
        """Asks the metric for its detections."""
        for metric in self._metrics(runner):
            metric.output = str(Path(runner.work_dir) / FOUND)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Draws, in the first process."""
        folder = Path(runner.work_dir)
        for metric in self._metrics(runner) if is_main_process() else ():
            draw_timelines(folder / FOUND, metric.truth, folder / "timelines" / f"iter_{runner.iter}", self.videos)

    @staticmethod
    def _metrics(runner: Any) -> list[TADMetric]:
        return [metric for metric in runner.val_evaluator.metrics if isinstance(metric, TADMetric)]
