"""Average precision of a run; importing this module registers `TADMetric` in scope `stpt`."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from paperkit.errors import UserError
from paperkit.training.openmmlab import own_scope
from stpt.method.soft_nms import PostProcess, Windows, detections
from stpt.models.labels import ANY_ACTION
from stpt.training.annotations import bare
from stpt.training.external_classifier import name_by_classifier, read_classifier
from stpt.training.found_actions import Found, named, write_results
from stpt.training.scoring import figures, join, read_truth, usual_thresholds


@own_scope("stpt").METRICS.register_module()
class TADMetric(BaseMetric):
    """mAP of temporal action detection in %: `mAP@0.5` and so on, `mAP` their mean, and `AR@100`, `AR-AN`.

    Reads of each sample `pred_segments` (K, 2) in frames of the clip, `pred_scores` (K, C + 1), and the metainfo
    `video`, `offset` (frames), `sample_fps`, `duration` (seconds or None). All windows of a video are taken together.

    Args:
        truth: file of annotations. subset: of it; None for all.
        policy: what counts as the truth, `afsd` or `opentad` (`stpt.training.truth_policies`).
        classes: names of the network's outputs 1..C; those of the file without it. ["action"] for a detector that
            tells actions from background only: it is scored as one class, under `one_class/mAP` and so on.
        thresholds: of tIoU; without them those of THUMOS14 for its classes, else those of ActivityNet.
        post: fields of `stpt.method.soft_nms.PostProcess`.
        classifier: file of a classifier's scores that names the actions of such a detector; only with it there is an
            `mAP` of all classes beside that of one.
        output: JSON file for the detections.
        options: as BaseMetric's (`collect_device`, `prefix`).
    """

    def __init__(
        self,
        truth: str,
        subset: str | None = None,
        policy: str = "afsd",
        classes: Sequence[str] | None = None,
        thresholds: Sequence[float] | None = None,
        post: Mapping[str, Any] | None = None,
        classifier: str | None = None,
        output: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.one_class = classes is not None and list(classes) == [ANY_ACTION]
        if classifier is not None and not self.one_class:
            raise UserError(f"a classifier names the actions of a detector of the one class {ANY_ACTION!r} only")
        self.truth = read_truth(truth, subset, policy, None if self.one_class else classes)
        self.classes = (ANY_ACTION,) if self.one_class else self.truth.annotations.classes
        self.thresholds = tuple(thresholds or usual_thresholds(self.truth.annotations.classes))
        try:
            self.post = PostProcess(**(post or {}))
        except TypeError as error:
            raise UserError(f"post: {error}") from None
        self.classifier = None if classifier is None else read_classifier(classifier)
        self.named_by, self.output = classifier, output

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keeps what the network found in each clip."""
        for sample in data_samples:
            spans, scores = (sample[key].detach().cpu().float().numpy() for key in ("pred_segments", "pred_scores"))
            if scores.shape[-1] != len(self.classes) + 1:
                raise UserError(
                    f"the network has {scores.shape[-1] - 1} classes, and the truth has {len(self.classes)}: name the "
                    "network's in `classes`"
                )
            place = float(sample["offset"]), float(sample["sample_fps"]), sample.get("duration")
            self.results.append((str(sample["video"]), *place, spans, scores))

    def found(self, results: Sequence[tuple[Any, ...]]) -> dict[str, Found]:
        """The detections of each video, from all its windows."""
        windows: dict[str, dict[float, tuple[Any, ...]]] = defaultdict(dict)
        for name, offset, *rest in results:
            windows[name][offset] = (offset, *rest)
        videos = []
        for name in windows:
            offsets, rates, durations, spans, scores = zip(
                *sorted(windows[name].values(), key=lambda one: one[0]), strict=True
            )
            videos.append(Windows(np.stack(spans), np.stack(scores), np.array(offsets), rates[0], durations[0]))
        listed = self.truth.annotations.videos
        names = [name if name in listed else bare(name) for name in windows]
        return {
            name: named(detected, list(self.classes))
            for name, detected in zip(names, detections(videos, self.post), strict=True)
        }

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Figures in % by name."""
        found, values = self.found(results), {}
        if self.one_class:
            _, plain = figures(join(found, self.truth, one_class=True), self.thresholds, self.truth.absent)
            values = {f"one_class/{name}": value for name, value in plain.items()}
        if self.classifier is not None:
            found = name_by_classifier(found, self.classifier)
        if self.output is not None:
            write_results(self.output, found, "stpt", self.named_by or "")
        if self.one_class and self.classifier is None:
            return values
        return {**figures(join(found, self.truth), self.thresholds, self.truth.absent)[1], **values}
