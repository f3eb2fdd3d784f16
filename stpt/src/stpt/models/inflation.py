"""Weights of other networks for the backbone: those of a 2D network, inflated, and MViT's, as far as they fit.

Nobody published STPT's pre-training; it is said to start from inflated ImageNet weights. The blocks are those of MViT-B
in number and width, so that torchvision's `mvit_v1_b` (Kinetics-400) fills nearly all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.keys import first_few
from stpt.method.backbone import Backbone, Block

INFLATIONS = ("mean", "center")


def inflate(weight: Tensor, frames: int, how: str = "mean") -> Tensor:
    """A 2D convolution's weight (O, I, H, W) as a 3D one's (O, I, frames, H, W).

    Args:
        how: `mean` repeats it and divides by `frames` (I3D), so that a clip of one still picture gives the picture's
            values away from its ends; `center` puts it in the middle frame among zeros (UniFormer).

    Raises:
        UserError: no such way.
    """
    if how not in INFLATIONS:
        raise UserError(f"inflation '{how}' is none of {', '.join(INFLATIONS)}")
    if how == "mean":
        return weight.unsqueeze(2).repeat(1, 1, frames, 1, 1) / frames
    inflated = weight.new_zeros(*weight.shape[:2], frames, *weight.shape[2:])
    inflated[:, :, frames // 2] = weight
    return inflated


def inflated(state: Mapping[str, Tensor], backbone: Backbone, how: str = "mean") -> dict[str, Tensor]:
    """A 2D network's weights under the backbone's names, with its convolutions as the backbone has them."""
    own = backbone.state_dict()

    def fitted(name: str, weight: Tensor) -> Tensor:
        three_d = name in own and own[name].ndim == 5 and weight.ndim == 4
        return inflate(weight, own[name].shape[2], how) if three_d else weight

    return {name: fitted(name, weight) for name, weight in state.items()}


@dataclass
class Loaded:
    """What became of a file's weights.

    Attributes:
        loaded: names of the backbone. skipped: names of the file that do not fit. unused: names of the file without a
            place. fresh: names of the backbone that keep their fresh weights.
    """

    loaded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A line for each."""
        told = {"loaded": self.loaded, "skipped (another shape)": self.skipped,
                "without a place": self.unused, "left fresh": self.fresh}  # fmt: skip
        return [f"{len(names)} {what}{': ' if names else ''}{first_few(names)}" for what, names in told.items()]


def is_mvit(state: Mapping[str, Tensor]) -> bool:
    """Whether weights have the names of torchvision's MViT."""
    return {"conv_proj.weight", "blocks.0.attn.qkv.weight"} <= state.keys()


def load_mvit(backbone: Backbone, state: Mapping[str, Tensor]) -> Loaded:
    """Fills a backbone from the weights of torchvision's `mvit_v1_b`, whose blocks stand for its blocks in order.

    MViT doubles its width inside the last feed-forward layer before a new stage: those three layers have no place here.

    Args:
        backbone: changed in place. state: as torchvision names them.
    """
    own = backbone.state_dict()
    places = [name for name, module in backbone.named_modules() if isinstance(module, Block)]
    names = {"norm1": "norm1", "norm2": "norm2", "attn.project.0": "attn.proj", "mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2"}
    known = {f"conv_proj.{end}": f"stages.0.patch_embed.proj.{end}" for end in ("weight", "bias")}
    for number, place in enumerate(places):
        for theirs, ours in names.items():
            for end in ("weight", "bias"):
                known[f"blocks.{number}.{theirs}.{end}"] = f"{place}.{ours}.{end}"
    offered: dict[str, tuple[str, Tensor]] = {}
    report = Loaded()
    for name, weight in state.items():
        block, _, rest = name.partition(".attn.qkv.")
        number = int(block.removeprefix("blocks.")) if rest and block.removeprefix("blocks.").isdigit() else len(places)
        if number < len(places):
            attn = f"{places[number]}.attn"
            joint = f"{attn}.qkv.{rest}" in own
            q, kv = weight.tensor_split([len(weight) // 3])
            parts = {f"{attn}.qkv.{rest}": weight} if joint else {f"{attn}.q.{rest}": q, f"{attn}.kv.{rest}": kv}
            offered.update({ours: (name, part) for ours, part in parts.items()})
        elif name in known:
            offered[known[name]] = (name, weight)
        else:
            report.unused.append(name)
    with torch.no_grad():
        for ours, (name, weight) in offered.items():
            if ours in own and own[ours].shape == weight.shape:
                own[ours].copy_(weight)
                report.loaded.append(ours)
            elif name not in report.skipped:
                report.skipped.append(name)
    report.fresh = sorted(own.keys() - set(report.loaded))
    return report
