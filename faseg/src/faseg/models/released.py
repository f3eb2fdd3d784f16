"""The authors' checkpoint files, those of Mask2Former, and ImageNet weights: read, described, named as here.

A released file is a training checkpoint of detectron2: a state dict under `model`, whose names are those of `FASeg`.
The authors' own loader renames every key of a head unless the dict carries the version number that torch keeps beside
it, and then drops the renamed ones without a word. Here names decide, and files written here carry the number.
Released as ade_faseg_{r50,swin_ti,swin_b,swin_l}.pth and cityscapes_faseg_r50.pth; they lie where the authors'
repository says.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from faseg.models.detectron2_pickle import read_pickled_weights
from faseg.models.faseg import BACKBONES, MASK2FORMER, RELEASES
from faseg.models.resnet import ResNet, from_torchvision, is_torchvision
from faseg.models.swin import Swin, from_classifier, resize_tables
from paperkit.errors import UserError
from paperkit.files.weights import read_weights

HEAD, PIXELS, PREDICTOR = "sem_seg_head.", "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
POINTS, ENCODER_LEVELS = 4, 3
"""Of the deformable encoder. Weights do not tell points from heads; every published network has 4."""
DEFAULT_WIDTH = 256


def read_released(path: str | Path, trust_pickle: bool | None = None) -> dict[str, Tensor]:
    """The state dict of a released, Mask2Former or own file under today's names.

    Args:
        path: the file; a .pkl is one of detectron2's model zoos.
        trust_pickle: read a pickle that can run code; None where the caller's user has no option to say so.

    Raises:
        UserError: as `paperkit.files.weights.read_weights`; of a released file that is not there, where to get it.
    """
    path = Path(path).expanduser()
    if path.stem in RELEASES and not path.exists():
        raise UserError(
            f"no checkpoint at {path}: put the authors' file {path.name} there (it lies where the repository "
            "ziplab/FASeg says) or name another place"
        )
    return modern_names(_read(path, trust_pickle))


def _read(path: Path, trust_pickle: bool | None = None) -> dict[str, Tensor]:
    """The state dict of a file of `torch.save`, safetensors, or detectron2's .pkl."""
    if path.suffix == ".pkl":
        return read_pickled_weights(path)
    return read_weights(path, bool(trust_pickle), advice=None if trust_pickle is None else "--trust-pickle")


def modern_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of early Mask2Former files: `static_query`, and the pixel decoder's parts right under the head."""
    early = not any(key.startswith(PIXELS) for key in state)
    renamed = {}
    for key, value in state.items():
        if early and key.startswith(HEAD) and not key.startswith(PREDICTOR):
            key = PIXELS + key.removeprefix(HEAD)
        renamed[key.replace("predictor.static_query.", "predictor.query_feat.")] = value
    return renamed


def describe_released(state: Mapping[str, Tensor], source: str = "the file") -> dict[str, Any]:
    """Arguments of `FASeg` that a state dict fits, read from its names and shapes; defaults are left out.

    The number of windows (`omega`), thresholds and the kind of pooling leave no trace in weights: published ones are
    assumed. Key positions are taken for sine waves where there are no weights for them.

    Raises:
        UserError: neither FASeg nor a Mask2Former with such a pixel decoder.
    """
    wanted = (f"{PREDICTOR}class_embed.weight", f"{PREDICTOR}query_feat.weight", f"{PIXELS}mask_features.weight")
    if lacking := [key for key in wanted if key not in state]:
        raise UserError(f"{source} holds neither FASeg nor Mask2Former: no {lacking[0]} among {len(state)} keys")
    classes = state[wanted[0]].shape[0] - 1
    mask_dim, conv_dim = state[wanted[2]].shape[:2]
    options: dict[str, Any] = dict(backbone=_backbone(state, source), num_classes=classes)
    options.update(_changed(dict(conv_dim=conv_dim, mask_dim=mask_dim), conv_dim=DEFAULT_WIDTH, mask_dim=DEFAULT_WIDTH))
    decoder: dict[str, Any] = _changed(
        dict(
            num_queries=state[wanted[1]].shape[0],
            dim_feedforward=_rows(state, f"{PREDICTOR}transformer_ffn_layers.0.linear1.weight"),
            layers=_count(state, f"{PREDICTOR}transformer_ffn_layers."),
        ),
        num_queries=100, dim_feedforward=2048, layers=13,
    )  # fmt: skip
    pixels: dict[str, Any] = _changed(
        dict(
            layers=_count(state, f"{PIXELS}transformer.encoder.layers."),
            dim_feedforward=_rows(state, f"{PIXELS}transformer.encoder.layers.0.linear1.weight"),
            nheads=_rows(state, f"{PIXELS}transformer.encoder.layers.0.self_attn.attention_weights.weight")
            // (ENCODER_LEVELS * POINTS),
        ),
        layers=6, dim_feedforward=1024, nheads=8,
    )  # fmt: skip
    if "nheads" in pixels:
        decoder["nheads"] = pixels["nheads"]
    if f"{PREDICTOR}input_proj.0.weight" in state:
        decoder["enforce_input_project"] = True
    moves, windows = f"{PREDICTOR}adapt_pos2d.0.weight" in state, _rows(state, f"{PREDICTOR}level_embed.weight") == 4
    if not moves:
        decoder["query_pos"] = "learned"
    if not windows:
        decoder["hrca"] = False
    kinds = {"conditional": "pos_linear.0.weight", "learned": "pos_learned.0.rows.weight"}
    key_pos = next((kind for kind, name in kinds.items() if PIXELS + name in state), "sine")
    if key_pos != "conditional":
        options["key_pos"] = key_pos
    if not (moves or windows) and key_pos == "sine":
        decoder["attn_threshold"] = MASK2FORMER["decoder"]["attn_threshold"]
    options.update({name: part for name, part in (("pixel_decoder", pixels), ("decoder", decoder)) if part})
    return _with_sizes(options)


def release_name(options: Mapping[str, Any]) -> str | None:
    """The release that arguments of `FASeg` describe, `mask2former` for its baseline, or None."""
    sizes = ("shortest", "longest")
    rest = {key: value for key, value in options.items() if key not in (*sizes, "class_names")}
    for name, release in RELEASES.items():
        if rest == {key: value for key, value in release.options.items() if key not in sizes}:
            return name
    return "mask2former" if MASK2FORMER.items() <= rest.items() else None


def read_backbone(path: str | Path, backbone: ResNet | Swin) -> dict[str, Tensor]:
    """A backbone's weights from an ImageNet file, for `load_strict`.

    Args:
        path: of torchvision, timm, mmseg, detectron2 or the authors of Swin, or a whole network's, whose backbone is
            taken.
        backbone: that they are for. Bias tables of another window are resized; output norms, which a classifier lacks,
            keep their values.

    Raises:
        UserError: as `read_weights`.
    """
    state = _read(Path(path).expanduser())
    if any(key.startswith("backbone.") for key in state):
        state = {key.removeprefix("backbone."): t for key, t in state.items() if key.startswith("backbone.")}
    own = backbone.state_dict()
    if isinstance(backbone, ResNet):
        state = from_torchvision(state) if is_torchvision(state) else state
        left = {key for key in state if key.endswith("num_batches_tracked") and key not in own}
        return {key: value for key, value in state.items() if key not in left and not key.startswith("stem.fc.")}
    state = resize_tables(from_classifier(state), backbone)
    kept = {key: value for key, value in own.items() if re.search(r"^norm\d\.|relative_position_index$", key)}
    return {**kept, **state}


def _backbone(state: Mapping[str, Tensor], source: str) -> str | dict[str, Any]:
    """Name or arguments of the backbone."""
    own = {key.removeprefix("backbone."): t for key, t in state.items() if key.startswith("backbone.")}
    found: dict[str, Any]
    if "stem.conv1.weight" in own and "res5.0.conv3.weight" in own:
        norm = "SyncBN" if "stem.conv1.norm.num_batches_tracked" in own else "FrozenBN"
        sizes = dict(
            blocks=[_count(own, f"res{stage}.") for stage in range(2, 6)],
            stem=_rows(own, "stem.conv1.weight"),
            width=_rows(own, "res2.0.conv1.weight"),
            outputs=_rows(own, "res2.0.conv3.weight"),
            norm=norm,
        )
        usual = dict(blocks=[3, 4, 6, 3], stem=64, width=64, outputs=256, norm="FrozenBN")
        found = dict(kind="resnet", **_changed(sizes, **usual))
    elif "patch_embed.proj.weight" in own and "layers.0.blocks.0.attn.qkv.weight" in own:
        tables = [f"layers.{i}.blocks.0.attn.relative_position_bias_table" for i in range(_count(own, "layers."))]
        dim, _, _, patch = own["patch_embed.proj.weight"].shape
        found = dict(
            kind="swin",
            dim=dim,
            depths=[_count(own, f"layers.{i}.blocks.") for i in range(len(tables))],
            heads=[own[table].shape[1] for table in tables],
            window=(round(_rows(own, tables[0]) ** 0.5) + 1) // 2,
        )
        ratio = _rows(own, "layers.0.blocks.0.mlp.fc1.weight") / dim
        found.update(_changed(dict(mlp_ratio=ratio, patch=patch), mlp_ratio=4.0, patch=4))
    else:
        raise UserError(f"{source} has a backbone that is neither a ResNet of bottlenecks nor a Swin")
    return next((name for name, options in BACKBONES.items() if options == found), found)


def _with_sizes(options: dict[str, Any]) -> dict[str, Any]:
    """With the sides that the release of this backbone and these classes has; else `FASeg`'s own."""
    for release in RELEASES.values():
        if all(release.options[key] == options[key] for key in ("backbone", "num_classes")):
            return {**options, **{key: release.options[key] for key in ("shortest", "longest")}}
    return options


def _changed(found: Mapping[str, Any], **usual: Any) -> dict[str, Any]:
    return {key: value for key, value in found.items() if value != usual[key]}


def _rows(state: Mapping[str, Tensor], key: str) -> int:
    if key not in state or not state[key].ndim:
        raise UserError(f"the weights lack {key}")
    return state[key].shape[0]


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """One more than the largest number behind `prefix`."""
    numbers = (key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix))
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)
