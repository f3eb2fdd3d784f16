"""Released files: sizes and names of all five, both directions, the version number, Mask2Former's, damaged ones."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import faseg
from torch import Tensor, nn

from faseg.models.conversion import load_network, to_file, to_folder
from faseg.models.faseg import MASK2FORMER, RELEASES, FASeg, build
from faseg.models.released import describe_released, modern_names, read_backbone, release_name
from paperkit.errors import UserError
from paperkit.files.weights import read_weights

COUNTS = {  # backbone, pixel decoder, transformer decoder; entries of the state dict
    "ade_faseg_r50": (23_454_912, 6_112_448, 20_944_279, 646),
    "ade_faseg_swin_ti": (27_520_698, 5_457_088, 20_944_279, 570),
    "ade_faseg_swin_b": (86_880_376, 5_588_160, 20_944_279, 738),
    "ade_faseg_swin_l": (195_201_204, 5_850_304, 20_944_279, 738),
    "cityscapes_faseg_r50": (23_508_032, 6_112_448, 20_910_612, 699),
}
RESNET = dict(kind="resnet", blocks=[1, 1, 1, 1], stem=8, width=4, outputs=16)
SWIN = dict(kind="swin", dim=8, depths=[1, 2, 1, 1], heads=[1, 2, 2, 4], window=4)
PIXELS = dict(layers=1, dim_feedforward=48, nheads=4)
DECODER = dict(num_queries=6, dim_feedforward=40, layers=5, nheads=4)


def tiny(backbone: dict[str, Any] = RESNET, decoder: dict[str, Any] | None = None, **options: Any) -> FASeg:
    torch.manual_seed(0)
    sizes = dict(num_classes=5, conv_dim=32, mask_dim=32, pixel_decoder=PIXELS)
    return FASeg(backbone, **{**sizes, "decoder": {**DECODER, **(decoder or {})}, **options}).eval()


def predictions(model: FASeg) -> Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(1, 3, 64, 96), masks="last")["pred_masks"]


@pytest.mark.parametrize("name", COUNTS)
def test_sizes_of_the_releases(name: str) -> None:
    model = build(name, "meta")
    parts = (model.backbone, model.sem_seg_head.pixel_decoder, model.sem_seg_head.predictor)
    assert (*(sum(p.numel() for p in part.parameters()) for part in parts), len(model.state_dict())) == COUNTS[name]
    options = describe_released(model.state_dict())
    assert options == RELEASES[name].options and release_name(options) == name


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("backbone", [RESNET, {**RESNET, "norm": "SyncBN"}, SWIN], ids=["frozen", "sync", "swin"])
def test_there_and_back(backbone: dict[str, Any], wrapped: bool, tmp_path: Path) -> None:
    model = tiny(backbone)
    state = model.state_dict()
    beside = {"optimizer": {"state": {}, "param_groups": []}, "scheduler": {"last_epoch": 9}, "iteration": 9}
    torch.save({"model": state, **beside} if wrapped else dict(state), tmp_path / "a.pth")
    line = faseg.here("convert", tmp_path / "a.pth", tmp_path / "folder")
    assert f"{len(state)} tensors" in str(line)
    faseg.here("convert", tmp_path / "folder", tmp_path / "b.pth")
    back = read_weights(tmp_path / "b.pth")
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    for source in ("a.pth", "folder", "b.pth"):
        assert torch.equal(predictions(load_network(tmp_path / source)), predictions(model))
    assert torch.equal(predictions(FASeg.from_pretrained(tmp_path / "folder")), predictions(model))


def test_files_carry_the_number_that_the_authors_loader_asks_for(tmp_path: Path) -> None:
    """Without version 2 in the metadata their head puts `pixel_decoder.` before names that have it already."""
    to_folder(_saved(tiny(), tmp_path / "a.pth"), tmp_path / "folder")
    to_file(tmp_path / "folder", tmp_path / "b.pth")
    state = torch.load(tmp_path / "b.pth", weights_only=True)["model"]

    class Head(nn.Module):
        """The rule of the authors' head."""

        def _load_from_state_dict(self, state: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
            version = local_metadata.get("version", None)
            if version is None or version < 2:
                for key in [k for k in state if k.startswith(prefix) and f"{prefix}predictor" not in k]:
                    state[key.replace(prefix, f"{prefix}pixel_decoder.")] = state.pop(key)
            super()._load_from_state_dict(state, prefix, local_metadata, *args)

    whole = nn.ModuleDict({"sem_seg_head": Head()})
    with_number = whole.load_state_dict(state, strict=False).unexpected_keys
    without = whole.load_state_dict(dict(state), strict=False).unexpected_keys
    doubled = "sem_seg_head.pixel_decoder.pixel_decoder.mask_features.weight"
    assert doubled not in with_number and doubled in without


def test_mask2former_file_fits_the_baseline_head(tmp_path: Path) -> None:
    """Nine layers, three levels, sine waves; early files name the queries otherwise and know no pixel decoder."""
    baseline = {**MASK2FORMER, "decoder": {**MASK2FORMER["decoder"], "layers": 3}}
    model = tiny(**baseline)
    state = model.state_dict()
    assert not [key for key in state if "pos_linear" in key or "adapt_pos2d" in key or "input_proj.3" in key]
    early = {
        key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query"): value
        for key, value in state.items()
    }
    assert modern_names(early).keys() == state.keys()
    torch.save({"model": early}, tmp_path / "m.pth")
    loaded = load_network(tmp_path / "m.pth")
    assert torch.equal(predictions(loaded), predictions(model))
    assert loaded.sem_seg_head.predictor.attn_threshold == 0.5
    with torch.device("meta"):
        published = FASeg("r50", **MASK2FORMER)
    assert round(sum(p.numel() for p in published.parameters()) / 1e6) == 44  # as its paper's table has it
    assert release_name(describe_released(published.state_dict())) == "mask2former"


def test_pickles_of_detectron2(tmp_path: Path) -> None:
    """Mask2Former's zoo has arrays in its .pkl, converted backbones have tensors; nothing else is built."""
    model = tiny(**{**MASK2FORMER, "decoder": {**MASK2FORMER["decoder"], "layers": 3}})
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    content = {"model": arrays, "__author__": "third_party", "matching_heuristics": True}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content, protocol=2))
    assert torch.equal(predictions(load_network(tmp_path / "m.pkl")), predictions(model))
    swin = tiny(SWIN).backbone
    state = {key: value + 1 for key, value in swin.state_dict().items()}
    (tmp_path / "s.pkl").write_bytes(pickle.dumps({"model": state, "__author__": "third_party"}))
    found = read_backbone(tmp_path / "s.pkl", swin)
    assert torch.equal(found["patch_embed.proj.weight"], state["patch_embed.proj.weight"])
    for content, told in (
        ({"model": {"a": Path("x")}}, r"pathlib.*is no number, array or tensor"),
        ({"model": {"a": arrays, "b": torch.ones(1)}}, "holds no state dict"),
        ({"weights": arrays}, "no weight file of detectron2: 'model'"),
        ({"model": {"a": np.full(2, np.nan)}}, "no numbers"),
        ({"model": {"a": np.array([print])}}, "(builtins|__builtin__).print is no number"),
    ):
        (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=told):
            load_network(tmp_path / "bad.pkl")
    (tmp_path / "bad.pkl").write_bytes((tmp_path / "m.pkl").read_bytes()[:5000])
    with pytest.raises(UserError, match="is no weight file of detectron2"):
        load_network(tmp_path / "bad.pkl")


@pytest.mark.parametrize("key_pos", ["sine", "learned"])
@pytest.mark.parametrize("query_pos", ["dfpq", "learned"])
def test_each_part_alone_is_recognised(key_pos: str, query_pos: str) -> None:
    model = tiny(key_pos=key_pos, decoder=dict(query_pos=query_pos, enforce_input_project=query_pos == "dfpq"))
    options = describe_released(model.state_dict())
    again = FASeg(**options)
    assert again.state_dict().keys() == model.state_dict().keys()
    again.load_state_dict(model.state_dict())
    assert torch.equal(predictions(again.eval()), predictions(model))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = dict(tiny().state_dict())
    lost = "sem_seg_head.pixel_decoder.adapter_1.weight"
    for changed, told in (
        ({k: v for k, v in state.items() if k != lost}, f"1 missing: {lost}"),
        ({**state, "surprise": torch.ones(1)}, "1 unexpected: surprise"),
        ({**state, lost: torch.ones(3, 3)}, "32x16x1x1"),
        ({"fc.weight": torch.ones(2, 2)}, "neither FASeg nor Mask2Former"),
        ({k: v for k, v in state.items() if "backbone" not in k}, "neither a ResNet of bottlenecks nor a Swin"),
    ):
        torch.save({"model": changed}, tmp_path / "a.pth")
        with pytest.raises(UserError, match=told):
            load_network(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"no checkpoint at .*ade_faseg_r50.pth.*ziplab/FASeg"):
        load_network(tmp_path / "ade_faseg_r50.pth")
    with pytest.raises(UserError, match=r"must end in \.pth"):
        to_file(tmp_path, tmp_path / "b.bin")


def test_backbone_by_other_names(tmp_path: Path) -> None:
    for backbone, names, key in (
        (RESNET, "torchvision", "layer1.0.downsample.0.weight"),
        (SWIN, "mmseg", "stages.0.blocks.0.attn.w_msa.qkv.weight"),
        (SWIN, "timm", "layers.1.downsample.reduction.weight"),
    ):
        to_folder(_saved(tiny(backbone), tmp_path / "a.pth"), tmp_path / "folder")
        faseg.here("convert", tmp_path / "folder", tmp_path / "b.pth", "--backbone", names)
        assert key in read_weights(tmp_path / "b.pth")
    with pytest.raises(UserError, match="has those of timm, mmseg"):
        to_file(tmp_path / "folder", tmp_path / "b.pth", "torchvision")


def test_omega_is_kept(tmp_path: Path) -> None:
    faseg.here("convert", _saved(tiny(), tmp_path / "a.pth"), tmp_path / "folder", "--omega", "2")
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["decoder"]["omega"] == 2
    assert load_network(tmp_path / "folder").sem_seg_head.predictor.omega == 2
    assert load_network(tmp_path / "a.pth", omega=3).sem_seg_head.predictor.omega == 3


@pytest.mark.parametrize(
    ("decoder", "told"),
    [
        ({}, "tensors"),
        ({"attn_threshold": 0.5, "omega": 8}, "; weights alone do not say omega 8, attn_threshold 0.5"),
        ({"init_pool": "foreground"}, "; weights alone do not say init_pool foreground"),
    ],
)
def test_what_weights_do_not_say_is_told(decoder: dict[str, Any], told: str, tmp_path: Path) -> None:
    tiny(decoder=decoder).save_pretrained(tmp_path / "folder")
    assert to_file(tmp_path / "folder", tmp_path / "a.pth").endswith(told)


@pytest.mark.parametrize("backbone", [RESNET, SWIN], ids=["resnet", "swin"])
@pytest.mark.parametrize("size", [(20, 17), (33, 70), (64, 96)])
def test_pictures_of_any_size(backbone: dict[str, Any], size: tuple[int, int]) -> None:
    """Smaller than one cell of the coarsest map, odd, whole; a batch of two gives what each gives in the same frame."""
    model = tiny(backbone, conv_dim=64)  # with 32 channels a norm's group has one number on a map of one cell
    torch.manual_seed(2)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    scores = model.segment([image, image], [(50, 40), size])
    assert [x.shape for x in scores] == [(5, 50, 40), (5, *size)]
    assert all(x.isfinite().all() and (x >= 0).all() for x in scores)
    torch.testing.assert_close(model.segment([image])[0], scores[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", [RESNET, SWIN], ids=["resnet", "swin"])
def test_weights_of_half_the_precision(backbone: dict[str, Any]) -> None:
    smooth = dict(omega=1, attn_threshold=0.0)  # nothing is chosen, so that rounding changes no choice
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact = tiny(backbone, smooth).segment([image])[0]
    half = tiny(backbone, smooth).bfloat16().segment([image])[0]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1)


def _saved(model: FASeg, path: Path) -> Path:
    torch.save({"model": model.state_dict()}, path)
    return path
