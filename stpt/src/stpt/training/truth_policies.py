"""What counts as the truth: two evaluators of THUMOS14 differ, so that their scores cannot be compared strictly.

afsd      every annotated action of every listed video (its own evaluator's file: 210 test videos, 3311 actions);
          detections in videos without any action are dropped.
opentad   without two test videos whose annotations are wrong, and without actions that stand twice (211 test videos of
          212); detections in videos without any action are false positives.
"""

from dataclasses import dataclass, replace
from typing import Literal

from stpt.method.detection_map import Absent
from stpt.training.annotations import Annotations, once

PolicyName = Literal["afsd", "opentad"]


@dataclass(frozen=True)
class Policy:
    """Attributes: left_out: videos that do not count. twice: whether actions that stand twice do. absent: see mAP."""

    left_out: tuple[str, ...]
    twice: bool
    absent: Absent


POLICIES: dict[str, Policy] = {
    "afsd": Policy((), True, "dropped"),
    "opentad": Policy(("video_test_0000270", "video_test_0001292"), False, "counted"),
}


def apply_policy(annotations: Annotations, policy: Policy) -> Annotations:
    """The truth by a policy."""
    videos = {}
    for name, video in annotations.videos.items():
        if name not in policy.left_out:
            actions = video.actions if policy.twice else once(video.actions)
            videos[name] = replace(video, actions=actions)
    return replace(annotations, videos=videos)
