"""The authors' checkpoint files: reading them without running code, telling what they hold, fitting them to a network.

A training checkpoint is `{model, optimizer, lr_scheduler, epoch, scaler, args}` with options in an
`argparse.Namespace`; a bare state dict is read as well. EcoFormer layers hold `fast_attention.projection_matrix`, an
unused leftover of Performer, and do not say whether their hash is fitted. Released as pvtv2_b0_ecoformer.pth ...
pvtv2_b4_ecoformer.pth and twins_svt_s_ecoformer.pth; timm's PVTv2 and Twins weights are taken too.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.method.attention import EcoFormerAttention
from ecoformer.method.kernel_hash import KernelHash, holds_a_fit
from ecoformer.method.performer import feature_count, orthogonal_features
from ecoformer.models import pvt, twins
from ecoformer.models.pvt import PVTv2
from ecoformer.models.twins import Twins
from paperkit.errors import UserError
from paperkit.files.weights import load_strict, read_weights

LEFTOVER = "attn.fast_attention.projection_matrix"
SAVED_AS = {f"pvt_v2_b{i}_ecoformer": f"pvtv2_b{i}_ecoformer.pth" for i in range(5)}
SAVED_AS["alt_gvt_small_ecoformer"] = "twins_svt_s_ecoformer.pth"


def read_released(path: str | Path, trust_pickle: bool = False) -> dict[str, Tensor]:
    """The state dict of a released, a timm or an own file (.pth or .safetensors), under the released keys.

    Raises:
        UserError: as `paperkit.files.weights.read_weights`; of a released file that is not there, where to get it.
    """
    path = Path(path)
    if path.name in SAVED_AS.values() and not path.exists():
        raise UserError(
            f"no checkpoint at {path}: put the authors' file {path.name} there (release v1.0 of ziplab/EcoFormer), or "
            "name another place"
        )
    return from_timm(read_weights(path, trust_pickle))


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's names of PVTv2 turned into the released ones; other state dicts stay as they are.

    Where the ratio is 1 timm keeps `q` and `kv` apart, and the released code one `qkv`: those of the last stage join.
    """
    if not any(key.startswith("stages.") for key in state):
        return dict(state)
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        new = re.sub(r"^patch_embed\.", "patch_embed1.", key)
        new = re.sub(r"^stages\.(\d)\.downsample", lambda m: f"patch_embed{int(m[1]) + 1}", new)
        new = re.sub(r"^stages\.(\d)\.blocks", lambda m: f"block{int(m[1]) + 1}", new)
        new = re.sub(r"^stages\.(\d)\.norm", lambda m: f"norm{int(m[1]) + 1}", new)
        renamed[new.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")] = value
    return joined(renamed, lambda stem: f"{stem}.sr.weight" not in renamed)


def joined(state: Mapping[str, Tensor], where: Any = lambda stem: True) -> dict[str, Tensor]:
    """`q` and `kv` of attention layers (`....attn`) that `where` takes as one `qkv`."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        stem, _, name = key.rpartition(".attn.")
        stem = f"{stem}.attn"
        if name in ("q.weight", "q.bias") and where(stem):
            kind = name.removeprefix("q.")
            out[f"{stem}.qkv.{kind}"] = torch.cat([value, state[f"{stem}.kv.{kind}"]])
        elif not (name in ("kv.weight", "kv.bias") and where(stem)):
            out[key] = value
    return out


def split_leftovers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(what a network holds, the unused projections of EcoFormer layers)."""
    left = {
        key for key in state if key.endswith(LEFTOVER) and f"{key.removesuffix(LEFTOVER)}attn.to_qk.weight" in state
    }
    return {k: t for k, t in state.items() if k not in left}, {k: t for k, t in state.items() if k in left}


def fit_released(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict made ready for a network: leftovers out, each hash's flag in, wrong bits refused.

    A hash is taken for fitted when its supports are not all zero: the files do not say it.

    Raises:
        UserError: codes or supports of another number than the network's, with the layer and both.
    """
    own, _ = split_leftovers(state)
    for name, module in model.named_modules():
        if not isinstance(module, KernelHash):
            continue
        found = own.get(f"{name}.A")
        if found is not None and found.shape != module.A.shape and found.dim() == 3:
            heads, bits, supports = found.shape
            if (bits, supports) != (module.nbits, module.supports) and heads == module.heads:
                raise UserError(
                    f"{name} of the weights has {bits} bits over {supports} supports, the network {module.nbits} over "
                    f"{module.supports}; build it with nbits={bits}, supports={supports}"
                )
        if f"{name}.anchor" in own:
            own.setdefault(f"{name}.fitted", holds_a_fit(own[f"{name}.anchor"]))
    return own


def load_released(model: nn.Module, path: str | Path, trust_pickle: bool = False) -> None:
    """Loads a released or own file into a network, strictly.

    Raises:
        UserError: a damaged file, other bits, or keys that do not fit (they are named).
    """
    load_strict(model, fit_released(read_released(path, trust_pickle), model), str(path))


def to_released(model: nn.Module, leftovers: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A network's state dict under the released keys, which the authors' code loads strictly.

    Args:
        leftovers: the unused projections as `split_leftovers` gave them; where a layer has none, one is drawn (seeded).
    """
    state = {key: value for key, value in model.state_dict().items() if not key.endswith(".ksh.fitted")}
    for name, layer in model.named_modules():
        if isinstance(layer, EcoFormerAttention):
            key = f"{name}.fast_attention.projection_matrix"
            width = layer.head_dim
            drawn = orthogonal_features(feature_count(width), width, torch.Generator().manual_seed(0))
            state[key] = (leftovers or {}).get(key, drawn)
    return state


def describe_released(
    state: Mapping[str, Tensor], source: str = "the file"
) -> tuple[type[PVTv2] | type[Twins], dict[str, Any]]:
    """Class and constructor arguments of the network that a state dict belongs to, read from its shapes.

    Full attention does not show its number of heads: without an EcoFormer layer in a stage the published head width of
    the size is taken (64 for PVTv2-B1 and larger, else 32). Windows of Twins are 7.

    Raises:
        UserError: neither a PVTv2 nor a Twins state dict, or one with missing or misshapen weights.
    """
    try:
        if "patch_embed1.proj.weight" in state:
            return PVTv2, _describe_pvt(state)
        if "patch_embeds.0.proj.weight" in state:
            return Twins, _describe_twins(state)
    except KeyError as error:
        raise UserError(f"{source} lacks {error.args[0]}") from None
    except (IndexError, ValueError) as error:
        raise UserError(f"{source} holds weights of another shape than a PVTv2's or Twins': {error}") from None
    raise UserError(
        f"{source} holds no PVTv2 or Twins weights: no patch_embed1 or patch_embeds.0 among {len(state)} keys"
    )


def _describe_pvt(state: Mapping[str, Tensor]) -> dict[str, Any]:
    stages = [s for s in range(1, 10) if f"patch_embed{s}.proj.weight" in state]
    dims = tuple(state[f"patch_embed{s}.proj.weight"].shape[0] for s in stages)
    depths = tuple(_depth(state, f"block{s}") for s in stages)
    mlp = tuple(state[f"block{s}.0.mlp.fc1.weight"].shape[0] / d for s, d in zip(stages, dims, strict=True))
    options = dict(_common(state, [f"block{s}.0.attn" for s in stages], dims, "patch_embed1.proj.weight"))
    width = 64 if dims[0] == 64 else 32
    options["num_heads"] = tuple(_heads(state, f"block{s}.0.attn", d, width) for s, d in zip(stages, dims, strict=True))
    for size in pvt.SIZES.values():
        if size["embed_dims"] == dims and options["num_heads"][0] == size["num_heads"][0]:
            options["num_heads"] = size["num_heads"]
    first = "block1.0.attn"
    options["attn_type"] = _kind(state, first)
    ratios = [
        state[f"block{s}.0.attn.sr.weight"].shape[-1] if f"block{s}.0.attn.sr.weight" in state else 1 for s in stages
    ]
    if options["attn_type"] == "sra":
        options["sr_ratios"] = tuple(ratios)
    return dict(embed_dims=dims, depths=depths, mlp_ratios=mlp, **options)


def _describe_twins(state: Mapping[str, Tensor]) -> dict[str, Any]:
    stages = [i for i in range(10) if f"patch_embeds.{i}.proj.weight" in state]
    dims = tuple(state[f"patch_embeds.{i}.proj.weight"].shape[0] for i in stages)
    depths = tuple(_depth(state, f"blocks.{i}") for i in stages)
    mlp = tuple(state[f"blocks.{i}.0.mlp.fc1.weight"].shape[0] / d for i, d in zip(stages, dims, strict=True))
    options = dict(_common(state, [f"blocks.{i}.0.attn" for i in stages], dims, "patch_embeds.0.proj.weight"))
    options["num_heads"] = tuple(_heads(state, f"blocks.{i}.0.attn", d, 32) for i, d in zip(stages, dims, strict=True))
    kinds = {_kind(state, f"blocks.{i}.{j}.attn") for i in stages for j in range(depths[i])}
    # Windows leave no trace: full attention alone may be StandardBlock or GroupBlockv2.
    options["block"] = "EcoBlock" if "ecoformer" in kinds else "GroupBlock" if "sra" in kinds else "StandardBlock"
    return dict(
        embed_dims=dims,
        depths=depths,
        mlp_ratios=mlp,
        patch_size=state["patch_embeds.0.proj.weight"].shape[-1],
        **options,
    )


def _common(state: Mapping[str, Tensor], stems: list[str], dims: tuple[int, ...], first: str) -> dict[str, Any]:
    """Number of classes and channels, bits and supports, bias of the projections."""
    options: dict[str, Any] = dict(in_chans=state[first].shape[1], num_classes=0)
    if "head.weight" in state:
        options["num_classes"] = state["head.weight"].shape[0]
    options["qkv_bias"] = any(f"{stems[0]}.{name}.bias" in state for name in ("qkv", "q", "to_qk"))
    for stem in stems:
        if f"{stem}.fast_attention.ksh.A" in state:
            options["nbits"], options["supports"] = state[f"{stem}.fast_attention.ksh.A"].shape[1:]
    return options


def _depth(state: Mapping[str, Tensor], stage: str) -> int:
    return len({key[len(stage) + 1 :].split(".")[0] for key in state if key.startswith(f"{stage}.")})


def _heads(state: Mapping[str, Tensor], stem: str, dim: int, width: int) -> int:
    hash_ = state.get(f"{stem}.fast_attention.ksh.A")
    return hash_.shape[0] if hash_ is not None else max(1, dim // width)


def _kind(state: Mapping[str, Tensor], stem: str) -> str:
    if f"{stem}.fast_attention.ksh.A" in state:
        return "ecoformer"
    if f"{stem}.fast_attention.projection_matrix" in state:
        return "performer"
    return "msa_share_qk" if f"{stem}.to_qk.weight" in state else "sra" if f"{stem}.q.weight" in state else "msa"


def size_name(options: Mapping[str, Any]) -> str | None:
    """The name of a published size, or None."""
    for name, size in {**pvt.SIZES, **twins.SIZES}.items():
        if all(tuple(options[key]) == size[key] for key in ("embed_dims", "depths", "num_heads")):
            return name
    return None
