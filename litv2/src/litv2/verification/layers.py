"""Reference files of single layers: attention, feed-forward, blocks, merging, patch embedding, and the rivals.

Each function takes a file and returns what it holds under `out.*`, `grad.*` and, for counts, `config.*`.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from litv2.method import mechanisms
from litv2.method.conv_ffn import ConvFFN
from litv2.method.costs import block_macs
from litv2.method.deformable_merging import DeformableMerging
from litv2.method.hilo import HiLo
from litv2.models.pyramid import Block, PatchEmbed
from paperkit.errors import UserError
from paperkit.files.weights import load_strict
from paperkit.verification.verify import ReferenceFile

Computed = Mapping[str, Any]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def load(module: ModuleT, file: ReferenceFile) -> ModuleT:
    """The module in float64 and eval mode, with the file's weights."""
    load_strict(module.double(), file.state, "the file's sd.*")
    return module.eval()


def expect(config: Mapping[str, Any], key: str, known: str) -> None:
    """A described option has the one value that the rule computes, or is left out."""
    if config.get(key, known) != known:
        raise UserError(f"option {key} is {config[key]!r}; known: {known!r}")


def _gradients(module: nn.Module, x: Tensor, y: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    """Gradients of sum(y * cotangent) under the files' names."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(y, (x, *parameters), cotangent, allow_unused=True)
    return {
        f"grad.{'x' if name is None else f'sd.{name}'}": grad
        for name, grad in zip((None, *names), grads, strict=True)
        if grad is not None
    }


def layer_results(file: ReferenceFile, module: nn.Module, state: bool = True) -> tuple[Tensor, dict[str, Any]]:
    """Forward and backward of a layer that takes tokens of an H x W grid: (y, computed)."""
    if state:
        load(module, file)
    x = file.inputs["x"].requires_grad_()
    y = module(x, file.config["H"], file.config["W"])
    computed: dict[str, Any] = {"out.y": y}
    if "cotangent" in file.inputs:
        computed.update(_gradients(module, x, y, file.inputs["cotangent"]))
    return y, computed


def recompute_hilo(file: ReferenceFile) -> Computed:
    """HiLo: outputs of the layer and of both groups, gradients, heads, multiply-adds."""
    c = file.config
    layer = HiLo(c["dim"], c["num_heads"], c["window_size"], c["alpha"], c.get("qkv_bias", True), c.get("qk_scale"))
    _, computed = layer_results(file, layer)
    grid = file.inputs["x"].detach().unflatten(1, (c["H"], c["W"]))
    hifi, lofi = layer.branches(grid)
    flops = layer.flops(c["H"], c["W"])
    facts = dict(l_heads=layer.l_heads, h_heads=layer.h_heads, l_dim=layer.l_dim, h_dim=layer.h_dim)
    facts.update(flops_N=flops, flops_HW=flops)
    return {
        **computed,
        **{f"out.{name}": y for name, y in (("hifi_grid", hifi), ("lofi_grid", lofi)) if y is not None},
        **{f"config.{key}": value for key, value in facts.items()},
    }


def recompute_conv_ffn(file: ReferenceFile) -> Computed:
    """ConvFFN."""
    expect(file.config, "act", "gelu (erf)")
    return layer_results(file, ConvFFN(file.config["dim"], file.config["hidden"]))[1]


class _TokenBlock(nn.Module):
    """A block on tokens; its parameters stay those of the block."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        return self.block(x.unflatten(1, (H, W))).flatten(1, 2)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.block.named_parameters()


def recompute_block(file: ReferenceFile) -> Computed:
    """A block with or without HiLo, and its multiply-adds."""
    c = file.config
    attention, macs = None, 0
    if file.kind == "block_hilo":
        attention = HiLo(
            c["dim"], c["num_heads"], c["window_size"], c["alpha"], c.get("qkv_bias", True), c.get("qk_scale")
        )
        macs = attention.flops(c["H"], c["W"])
    block = Block(c["dim"], int(c["dim"] * c["mlp_ratio"]), attention, conv=True, drop=0.0, path=0.0)
    computed = layer_results(file, _TokenBlock(load(block, file)), state=False)[1]
    return {**computed, "config.flops": block_macs(c["H"], c["W"], c["dim"], c["mlp_ratio"], True, macs)}


def recompute_merging(file: ReferenceFile) -> Computed:
    """Deformable merging, in eval or train mode: offsets, sum, output, buffers."""
    c = file.config
    if (c.get("kernel_size", 2), c.get("stride", 2), c.get("padding", 0)) != (2, 2, 0):
        raise UserError("the merging has kernel 2, stride 2, padding 0")
    if c.get("mode", "cls") not in ("cls", "det", "seg"):
        raise UserError(f"mode {c['mode']!r} is unknown; known: cls, det, seg")
    merging = load(DeformableMerging(c["dim"]), file)
    merging.train(c["train"])
    x = file.inputs["x"].requires_grad_()
    grid = x.unflatten(1, (c["H"], c["W"]))
    offset = merging.dconv.offsets(grid)
    sampled = merging.dconv(grid)
    y = merging(grid).flatten(1, 2)
    computed: dict[str, Any] = {
        "out.y": y,
        "out.offset": offset.permute(0, 3, 1, 2),
        "out.dconv": sampled.permute(0, 3, 1, 2),
        **{f"out.{name}_after": buffer for name, buffer in merging.norm_layer.named_buffers()},
    }
    if "cotangent" in file.inputs:
        computed.update(_gradients(merging, x, y, file.inputs["cotangent"]))
    if "max_abs_offset" in c:
        largest, told = offset.abs().max().item(), c["max_abs_offset"]
        agree = isinstance(told, (int, float)) and abs(largest - told) <= 1e-5 * largest
        computed["config.max_abs_offset"] = told if agree else largest
    return computed


def recompute_patch_embed(file: ReferenceFile) -> Computed:
    """Padded patch embedding."""
    image = file.inputs["image"]
    layer = load(PatchEmbed(file.config["patch_size"], image.shape[1], file.config["embed_dim"]), file)
    return {"out.y": layer(image).permute(0, 3, 1, 2)}


def recompute_mechanism(build: Callable[[dict[str, Any]], nn.Module]) -> Callable[[ReferenceFile], Computed]:
    """A kind whose layer `build` makes from the file's options."""
    return lambda file: layer_results(file, build(file.config))[1]


def self_attention(c: dict[str, Any]) -> nn.Module:
    """Plain MSA."""
    return mechanisms.MSA(c["dim"], c["num_heads"], c.get("qkv_bias", True))


def relative_attention(c: dict[str, Any]) -> nn.Module:
    """LITv1's MSA with a bias for each pair of places."""
    return mechanisms.RelPosAttention(c["dim"], c["num_heads"], (c["H"], c["W"]), c.get("qkv_bias", True))


def window_attention(c: dict[str, Any]) -> nn.Module:
    """Swin's windows, shifted or not."""
    shift, rel = c.get("shift_size", 0), c.get("use_rel_pos", False)
    return mechanisms.WindowAttention(c["dim"], c["num_heads"], c["window_size"], shift, rel, c.get("qkv_bias", True))


def cross_window_attention(c: dict[str, Any]) -> nn.Module:
    """CSWin's stripes."""
    return mechanisms.CrossWindowAttention(c["dim"], c["num_heads"], c["split_size"], c.get("qkv_bias", True))


def cross_covariance_attention(c: dict[str, Any]) -> nn.Module:
    """XCiT's attention over channels."""
    return mechanisms.CrossCovarianceAttention(c["dim"], c["num_heads"], c.get("qkv_bias", True))
