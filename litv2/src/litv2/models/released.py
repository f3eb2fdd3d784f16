"""The authors' checkpoint files: reading them without running code, telling what they hold, fitting them to a model.

Classifier files are `{model, optimizer, config, ...}` with a pickled yacs node under `config`; detector and
segmentation files are `{meta, state_dict}` with prefixes `backbone.`, `neck.` and those of the heads. Inside, the
keys are the same as here. Released as litv2_s.pth, litv2_m.pth, litv2_b.pth, litv2_b_384.pth, alpha_{0,0.2,...,1}.pth,
{retinanet,mask_rcnn}_litv2_*_fpn_1x_coco*.pth, litv2_*_fpn_r50_512x512_80k_ade20k.pth; they lie where the authors'
repository says.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from litv2.method.hilo import HiLo
from litv2.method.mechanisms.global_attention import RelPosAttention, resize_bias_table
from litv2.models.pyramid import ARCHITECTURES
from paperkit.errors import UserError
from paperkit.files.pickles import named_classes
from paperkit.files.weights import load_strict, read_weights

PUBLISHED_ALPHAS = (0.9, 0.5, 0.0, 0.2, 0.4, 0.7, 1.0)  # the common ones first
TASK_PARTS = ("neck.", "bbox_head.", "rpn_head.", "roi_head.", "decode_head.", "auxiliary_head.")


class _OptionsNode:
    """Stands in for yacs' CfgNode and mmcv's ConfigDict: both are dicts with a few flags.

    It makes plain ordered dicts, since the safe unpickler fills no other kind of dict.
    """

    def __new__(cls, *content: Any) -> "_OptionsNode":
        return OrderedDict(*content)  # type: ignore[return-value]


SAFE_STAND_INS = ((_OptionsNode, "yacs.config.CfgNode"), (_OptionsNode, "mmcv.utils.config.ConfigDict"))


def read_released(
    path: str | Path, trust_pickle: bool | None = None, part: str | None = None, part_advice: str | None = None
) -> dict[str, Tensor]:
    """The state dict of a released or own file (.pth or .safetensors), keys as they stand there.

    Args:
        path: the file.
        trust_pickle: read a pickle that can run code; None where the caller's user has no option to say so.
        part, part_advice: which of several state dicts, and the option that says so (`paperkit.files.weights`).

    Raises:
        UserError: as `paperkit.files.weights.read_weights`; of a released file that is not there, where to get it.
    """
    path = Path(path).expanduser()
    if re.fullmatch(r"(litv2_\w+|alpha_[\d.]+|\w+_litv2_\w+)\.pth", path.name) and not path.exists():
        raise UserError(
            f"no checkpoint at {path}: put the authors' file {path.name} there (it lies where the repository "
            "ziplab/LITv2 says), name another place, or start without it (null in a .yaml, None in a .py)"
        )
    return read_weights(
        path,
        bool(trust_pickle),
        allow=(*SAFE_STAND_INS, *mmengine_classes(path)),
        part=part,
        advice=None if trust_pickle is None else "--trust-pickle",
        part_advice=part_advice,
    )


def mmengine_classes(path: Path) -> list[Any]:
    """What mmengine's checkpoints hold beside weights (its log's buffers, numpy's arrays), for those that name it."""
    if not any(name.startswith("mmengine.") for name in named_classes(path)):
        return []
    try:
        from mmengine.runner.checkpoint import get_torch_safe_globals
    except ImportError:
        return []  # the reader then names the class that it lacks
    return list(get_torch_safe_globals())


def backbone_part(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the network's own tensors without their prefix, the rest): splits a detector's or segmenter's file.

    A file without `backbone.` keys is all network.
    """
    if not any(key.startswith("backbone.") for key in state):
        return dict(state), {}
    own = {key.removeprefix("backbone."): t for key, t in state.items() if key.startswith("backbone.")}
    return own, {key: t for key, t in state.items() if not key.startswith("backbone.")}


def fit_released(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict made ready for a model of the same size: the backbone's part, tables resized, wrong heads refused.

    * LITv1's position tables are resized to the model's grid and their index buffers made anew.
    * For a backbone, the classifier's `norm` and `head` are left out, and missing output norms keep the model's.

    Raises:
        UserError: weights of another alpha (the fitting one is named), or window 1 against another.
    """
    state, _ = backbone_part(state)
    own = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, HiLo):
            check_heads(state, name, module)
        elif isinstance(module, RelPosAttention) and f"{name}.relative_position_bias_table" in state:
            table = state[f"{name}.relative_position_bias_table"]
            rows = module.relative_position_bias_table.shape[0]
            if table.shape[0] != rows:
                state[f"{name}.relative_position_bias_table"] = resize_bias_table(table, rows)
                state[f"{name}.relative_position_index"] = module.relative_position_index
    if "norm.weight" not in own:  # a backbone
        state = {key: t for key, t in state.items() if not key.startswith(("norm.", "head."))}
        for key, tensor in own.items():
            if re.match(r"norm\d\.", key):
                state.setdefault(key, tensor)
    return state


def check_heads(state: Mapping[str, Tensor], name: str, layer: HiLo) -> None:
    """Refuse attention weights whose split of heads is another than the layer's, and say what would fit."""
    low, high = state.get(f"{name}.l_proj.weight"), state.get(f"{name}.h_proj.weight")
    l_dim, h_dim = (0 if t is None else t.shape[0] for t in (low, high))
    if l_dim + h_dim != layer.dim or l_dim == layer.l_dim:
        return  # another width altogether, which the strict loading names, or a fit
    place = f"{name} of the weights has {l_dim} of {layer.dim} channels in the Lo-Fi group, the model {layer.l_dim}"
    if layer.window_size == 1 or (h_dim == 0 and layer.window_size > 1 and _is_last_stage(name)):
        raise UserError(f"{place}: window 1 (plain attention) and larger windows do not interchange; keep the window")
    alpha = alpha_of(state, layer.head_dim)
    raise UserError(f"{place}: they were trained with alpha {alpha:g}; build the model with alpha={alpha:g}")


def _is_last_stage(name: str) -> bool:
    return name.startswith("layers.3.")


def alpha_of(state: Mapping[str, Tensor], head_dim: int) -> float:
    """An alpha that gives every layer of `state` with both groups possible its head split.

    Layers whose heads are all Lo-Fi (window 1, or alpha 1) count only if there is no other.
    """
    splits = set()
    for key in state:
        if key.endswith((".l_proj.weight", ".h_proj.weight")):
            stem = key.rsplit(".", 2)[0]
            parts = state.get(f"{stem}.l_proj.weight"), state.get(f"{stem}.h_proj.weight")
            splits.add(tuple(0 if part is None else part.shape[0] // head_dim for part in parts))
    mixed = {split for split in splits if split[1]} or splits
    for alpha in PUBLISHED_ALPHAS:
        if all(int((low + high) * alpha) == low for low, high in mixed):
            return alpha
    low, high = max(mixed, key=sum)
    return low / (low + high)


def describe_released(state: Mapping[str, Tensor], source: str = "the file") -> dict[str, Any]:
    """Constructor arguments of the classifier or backbone that a state dict belongs to, read from its shapes.

    Head width is 32, as in every published size; windows of 2 and more leave no trace in the weights, so 2 is assumed.

    Raises:
        UserError: not a LITv1 or LITv2 state dict.
    """
    own, _ = backbone_part(state)
    if "patch_embed.proj.weight" not in own:
        raise UserError(f"{source} holds no LITv2 weights: no patch_embed.proj.weight among {len(own)} keys")
    dim = own["patch_embed.proj.weight"].shape[0]
    found: dict[int, int] = {}
    for key in own:
        if match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key):
            stage, block = map(int, match.groups())
            found[stage] = max(found.get(stage, 0), block + 1)
    depths = tuple(found[i] for i in sorted(found))
    options: dict[str, Any] = dict(embed_dim=dim, depths=depths)
    if (channels := own["patch_embed.proj.weight"].shape[1]) != 3:
        options["in_chans"] = channels
    options["num_heads"] = tuple(max(1, dim * 2**i // 32) for i in range(len(depths)))
    if "head.weight" in own:
        options["num_classes"] = own["head.weight"].shape[0]
    tables = [t for key, t in own.items() if key.endswith("relative_position_bias_table")]
    if tables:
        side = round(tables[0].shape[0] ** 0.5 + 1) // 2
        options.update(attention="msa", pos="rel", img_size=side * 16)
        return options
    options["alpha"] = alpha_of(own, 32)
    windows = [0, 0, 2, 1]
    if any(key.startswith("layers.3.") and ".h_proj" in key for key in own):
        windows[3] = 2
    options["local_ws"] = tuple(windows[: len(depths)])
    options["has_msa"] = tuple(int(any(k.startswith(f"layers.{i}.") and ".attn." in k for k in own)) for i in found)
    return options


def size_name(options: Mapping[str, Any]) -> str | None:
    """The published name of an architecture, or None."""
    for name, published in ARCHITECTURES.items():
        same = all(tuple(options[key]) == published[key] for key in ("depths", "num_heads"))
        if same and options["embed_dim"] == published["embed_dim"] and ("pos" in options) == ("pos" in published):
            return name
    return None


def load_released(model: nn.Module, path: str | Path, trust_pickle: bool | None = None) -> None:
    """Load a released or own file into a classifier or backbone, strictly.

    Raises:
        UserError: a damaged file, another alpha, or keys that do not fit (they are named).
    """
    load_strict(model, fit_released(read_released(path, trust_pickle), model), str(path))
