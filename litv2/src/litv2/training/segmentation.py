"""Train a segmentation network: a config of mmsegmentation (.py), run by mmengine's Runner.

Example: litv2 train --config litv2/configs/ade20k/semantic_fpn_litv2_s.py --cfg-options data_root=DIR
A config file is executed, so name only files that you trust. The run keeps the resolved config as data.
"""

from typing import TYPE_CHECKING

from paperkit.training.runner import RunnerEngine

if TYPE_CHECKING:
    from torch import Tensor


def _released(path: str) -> "dict[str, Tensor]":
    from litv2.models.released import read_released

    return read_released(path)


ENGINE = RunnerEngine(
    paper="litv2",
    kept="segmentation.json",
    registers=("litv2.models.segmenter", "paperkit.training.mmseg_data"),
    scopes=("mmseg", "mmengine"),
    read_start=_released,
)
add_arguments, add_evaluation_arguments = ENGINE.add_arguments, ENGINE.add_evaluation_arguments
check, train, evaluate = ENGINE.check, ENGINE.train, ENGINE.evaluate
