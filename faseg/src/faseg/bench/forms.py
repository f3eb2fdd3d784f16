"""The decoder in two forms under the same weights.

Shapes: B pictures, Q queries, M of them matched, C channels, P points.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from faseg.bench.plain import PlainDecoder
from faseg.method.decoder import Decoder
from faseg.method.matcher import sample_points

OURS, PLAIN = "lean form", "elementwise form"
CLASSES, WIDTH = 150, 256
STRIDES = (32, 16, 8, 4)
MATCHED, POINTS = 10, 12544
"""Masks of a picture in the backward pass, and the points at which each is compared."""

Maps = tuple[list[Tensor], list[Tensor], Tensor]
"""Features and key positions from coarse to fine, and mask features."""


def decoder_of(form: str, classes: int = CLASSES) -> nn.Module:
    """The 13 layers of the paper in that form; both forms have the same weights."""
    torch.manual_seed(0)
    ours = Decoder(classes)
    if form == OURS:
        return ours.eval()
    plain = PlainDecoder(classes)
    plain.load_state_dict(ours.state_dict())
    return plain.eval()


def decoder_maps(height: int, width: int) -> Maps:
    """Made input of the decoder for one picture of that size."""
    generator = torch.Generator().manual_seed(0)

    def drawn(stride: int) -> Tensor:
        return torch.randn(1, WIDTH, height // stride, width // stride, generator=generator)

    return [drawn(stride) for stride in STRIDES], [drawn(stride) for stride in STRIDES], drawn(STRIDES[-1])


def leaves(maps: Maps) -> list[Tensor]:
    """All tensors of the decoder's input."""
    return [*maps[0], *maps[1], maps[2]]


def inference(decoder: nn.Module, maps: Maps) -> tuple[Tensor, Tensor]:
    """Class logits and mask logits of the last layer."""
    with torch.inference_mode():
        if isinstance(decoder, PlainDecoder):
            return decoder(*maps)[-1]
        found = decoder(*maps, masks="last")
    return found["pred_logits"], found["pred_masks"]


def training(decoder: nn.Module, maps: Maps) -> Tensor:
    """Forward and backward from what losses read: all classes, and matched masks at points, of every output."""
    generator = torch.Generator().manual_seed(1)
    decoder.zero_grad(set_to_none=True)
    for leaf in leaves(maps):
        leaf.grad = None
        leaf.requires_grad_()
    loss = torch.zeros(())
    if isinstance(decoder, PlainDecoder):
        found = [(classes, masks[0, :MATCHED]) for classes, masks in decoder(*maps)]
    else:
        last = decoder(*maps, masks="none")
        found = [
            (one["pred_logits"], torch.einsum("qc,chw->qhw", one["mask_embeddings"][0, :MATCHED], maps[2][0]))
            for one in (*last["aux_outputs"], last)
        ]
    for classes, masks in found:
        places = torch.rand(len(masks), POINTS, 2, generator=generator)
        weights = torch.randn(classes.shape, generator=generator), torch.randn(len(masks), POINTS, generator=generator)
        loss = loss + (classes * weights[0]).mean() + (sample_points(masks[:, None], places)[:, 0] * weights[1]).mean()
    loss.backward()
    return loss.detach()


def decoder_steps(height: int, width: int, backward: bool) -> dict[str, Callable[[], object]]:
    """A step of each form, ours first."""
    maps, step = decoder_maps(height, width), training if backward else inference
    return {form: partial(step, decoder_of(form), maps) for form in (OURS, PLAIN)}
