"""mmaction2's own models beside STPT's in its registry, after the door is opened and not before."""

import subprocess
import sys

import pytest
import torch

from paperkit.errors import UserError
from paperkit.training.openmmlab import own_scope


def test_closed_until_it_is_opened() -> None:
    """In a process of its own: importing STPT's models installs nothing, and mmaction's cannot be imported."""
    code = (
        "import stpt.models.mm_detector, stpt.models.mm_classifier, stpt.models.mmaction_door as door, sys\n"
        "assert not any('drn' in name for name in sys.modules)\n"
        "try:\n    import mmaction.models\n    print('whole')\n"
        "except ModuleNotFoundError as error:\n    print(error.name)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["mmaction.models.localizers.drn"], done.stderr


@pytest.fixture(scope="module")
def models():  # type: ignore[no-untyped-def]
    from stpt.models.mmaction_door import open_door

    open_door()
    open_door()  # a second time changes nothing
    from mmaction.registry import MODELS

    return MODELS


def test_mmactions_models_run(models) -> None:  # type: ignore[no-untyped-def]
    """By their scope, as a config of another default scope names them."""
    clip = torch.rand(1, 3, 8, 32, 32)
    former = dict(type="mmaction.UniFormer", depth=[1, 1, 1, 1], embed_dim=[16, 32, 64, 64], img_size=32, head_dim=16)
    with torch.no_grad():
        assert models.build(former).eval()(clip).shape[:2] == (1, 64)
        arch = dict(embed_dims=16, num_layers=4, num_heads=1, downscale_indices=[1, 2, 3])
        mvit = models.build(dict(type="mmaction.MViT", arch=arch, spatial_size=32, temporal_size=8)).eval()
        assert mvit(clip)[0][0].shape == (1, 128, 4, 1, 1)


def test_ours_stand_beside_them(models) -> None:  # type: ignore[no-untyped-def]
    """The same class as in the own registry, under its own name; the preprocessor of its name is found too."""
    backbone = dict(name="stpt_tiny", dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    built = models.build(dict(type="STPTClassifier", backbone=backbone, num_classes=3))
    assert type(built) is own_scope("stpt").MODELS.module_dict["STPTClassifier"]
    assert type(built.data_preprocessor).__name__ == "ClipPreprocessor"
    assert "STPTDetector" in models.module_dict


def test_the_model_that_the_wheel_lacks_says_so(models) -> None:  # type: ignore[no-untyped-def]
    from stpt.models.mmaction_door import DRN

    with pytest.raises(UserError, match="without its model DRN"):
        DRN(1, option=2)
