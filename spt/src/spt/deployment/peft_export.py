"""The low-rank part of an SPT model as a peft LoRA adapter, and the base it belongs to.

A LoRA on m of q, k, v is exactly one LoRA of rank r m on timm's fused `qkv`: the down projections stacked, the up
projections side by side in their own rows, zeros elsewhere. Sparse values, tuned vectors and the class token are merged
into the base. Good for exchange and inference; training it in peft would fill the zero blocks.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.weights import load_strict, read_weights, save_weights
from spt.method.candidates import QKV
from spt.method.split_qkv import SplitQKV
from spt.method.structured import StructuredModule
from spt.method.tuned_linear import TunedLinear
from spt.method.tuning import merge
from spt.models.spt_model import SPTModel

BASE = "base.safetensors"


@dataclass
class LowRank:
    """One LoRA on a plain Linear: name, down [R, I], up [O, R]."""

    name: str
    down: Tensor
    up: Tensor


def low_rank_parts(model: nn.Module) -> list[LowRank]:
    """The modules of an SPT model as LoRAs on the Linears of the plain (fused) model.

    Raises:
        UserError: for adapters, or LoRAs with a bias, which peft's LoRA has no place for.
    """
    parts = []
    split = {name: module for name, module in model.named_modules() if isinstance(module, SplitQKV)}
    for name, module in model.named_modules():
        owner = name.rpartition(".")[0]
        if isinstance(module, TunedLinear) and module.structured is not None and owner not in split:
            parts.append(LowRank(name, *_weights(module.structured)))
        elif name in split:
            own: list[tuple[int, StructuredModule]] = [
                (i, part.structured)
                for i, part in enumerate(module.parts)
                if isinstance(part, TunedLinear) and part.structured is not None
            ]
            if own:
                rows = module.parts[0].out_features
                downs, ups = zip(*(_weights(structured) for _, structured in own), strict=True)
                up = torch.zeros(len(QKV) * rows, sum(d.shape[0] for d in downs), dtype=downs[0].dtype)
                column = 0
                for (place, _), block in zip(own, ups, strict=True):
                    up[place * rows : (place + 1) * rows, column : column + block.shape[1]] = block
                    column += block.shape[1]
                parts.append(LowRank(name, torch.cat(downs), up))
    return parts


def _weights(module: StructuredModule) -> tuple[Tensor, Tensor]:
    if module.kind != "lora":
        raise UserError(f"peft's LoRA cannot hold a module of type {module.kind}; only lora exports")
    return module.down.weight.detach(), module.up.weight.detach()


@torch.no_grad()
def base_without_modules(model: nn.Module) -> nn.Module:
    """A plain copy with everything but the modules merged in."""
    base = copy.deepcopy(model)
    for module in base.modules():
        if isinstance(module, TunedLinear):
            module.structured = None
    return merge(base).requires_grad_(False)


def export_to_peft(tuned: SPTModel, folder: str | Path) -> nn.Module:
    """Writes `base.safetensors` (plain timm keys) and peft's adapter files, head included; returns the peft model.

    Raises:
        UserError: when there is no LoRA module, or a module that peft's LoRA cannot hold; when the model reads the
            weight of such a layer itself and would pass over what peft puts there.
    """
    from peft import LoraConfig, get_peft_model

    folder = Path(folder)
    parts = low_rank_parts(tuned.base)
    if not parts:
        raise UserError("the selection has no LoRA module, so there is nothing to export to peft; merge it instead")
    base = base_without_modules(tuned.base)
    state = base.state_dict()
    ranks = {part.name: part.down.shape[0] for part in parts}
    config = LoraConfig(
        r=tuned.selection.rule.rank,
        lora_alpha=tuned.selection.rule.rank,
        target_modules=list(ranks),
        rank_pattern=ranks,
        alpha_pattern=ranks,
        lora_dropout=0.0,
        modules_to_save=[tuned.config.head],
    )
    model = get_peft_model(base, config)
    inner: Any = model.base_model.model
    modules = dict(inner.named_modules())
    with torch.no_grad():
        for part in parts:
            layer: Any = modules[part.name]
            layer.lora_A["default"].weight.copy_(part.down)
            layer.lora_B["default"].weight.copy_(part.up)
    _check_same(tuned, model.eval())
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / BASE, state)
    model.save_pretrained(str(folder))
    return model


@torch.no_grad()
def _check_same(tuned: SPTModel, exported: nn.Module) -> None:
    """Logits of an image of noise agree, where the model says what size an image has."""
    patches, mode = getattr(tuned.base, "patch_embed", None), tuned.training
    if not hasattr(patches, "img_size"):
        return
    weight = patches.proj.weight  # type: ignore[union-attr]
    noise = torch.randn(1, 3, *patches.img_size, generator=torch.Generator().manual_seed(0)).to(weight)  # type: ignore
    expected, found = tuned.eval()(noise), exported(noise)
    tuned.train(mode)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise UserError(
            f"{type(tuned.base).__name__} reads the weights of tuned layers itself and would pass over peft's LoRA "
            f"there (logits differ by {float((found - expected).abs().max()):.2g}); merge the delta instead"
        )


def load_from_peft(model: nn.Module, folder: str | Path) -> nn.Module:
    """Loads an export on a plain model of the same architecture through peft itself; every key must fit.

    peft itself only warns about missing keys, and silently starts a missing head at random.

    Raises:
        UserError: naming missing or unknown keys.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    folder = Path(folder)
    load_strict(model, read_weights(folder / BASE), str(folder / BASE))
    given = read_weights(folder / "adapter_model.safetensors")
    loaded = get_peft_model(model, PeftConfig.from_pretrained(str(folder)))
    wanted = set(get_peft_model_state_dict(loaded))
    if missing := sorted(wanted - set(given)):
        raise UserError(f"{folder / 'adapter_model.safetensors'} lacks {', '.join(missing[:5])}")
    if unknown := sorted(set(given) - wanted):
        raise UserError(f"{folder / 'adapter_model.safetensors'} holds unknown keys: {', '.join(unknown[:5])}")
    set_peft_model_state_dict(loaded, given)
    return loaded.eval()
