"""The products inside attention, quantised: q, k, v and the softmax's output (an option of Q-Diffusion's, section 2).

Shapes: B batch, H heads, N queries, M keys, D head width.
"""

from typing import Any, cast

from torch import Tensor, nn

from ptq4dm.method.quantizer import UniformAffineQuantizer
from ptq4dm.method.range_search import Method


class QuantizedProducts(nn.Module):
    """An attention processor of diffusers that quantises both products' operands; the projections are the layers'.

    Args:
        original: the processor that it takes the place of, and that runs while `quantized` is off.
        bits: of q, k, v and of the softmax, whose grid begins at 0.
        scale_method: of the range search.
    """

    act_quantizer_q: UniformAffineQuantizer
    act_quantizer_k: UniformAffineQuantizer
    act_quantizer_v: UniformAffineQuantizer

    def __init__(self, original: Any, bits: int, scale_method: Method) -> None:
        super().__init__()
        self.original = original
        self.quantized = False
        for name in ("q", "k", "v"):
            setattr(self, f"act_quantizer_{name}", UniformAffineQuantizer(bits, False, scale_method, learned_step=True))
        self.act_quantizer_softmax = UniformAffineQuantizer(
            bits, False, scale_method, learned_step=True, grid="from_zero"
        )

    def __call__(  # not forward: diffusers reads the signature of this one
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """As diffusers' `AttnProcessor`: tokens (B, N, C) or a picture (B, C, H, W), the same shape out."""
        if not self.quantized:
            found: Tensor = self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return found
        x = hidden_states if attn.spatial_norm is None else attn.spatial_norm(hidden_states, temb)
        shape = x.shape
        tokens = x if x.dim() == 3 else x.flatten(2).transpose(1, 2)
        context = tokens if encoder_hidden_states is None else encoder_hidden_states
        mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(tokens))
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        if encoder_hidden_states is None:
            context = tokens
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        q, k, v = attn.to_q(tokens), attn.to_k(context), attn.to_v(context)
        q, k, v = (attn.head_to_batch_dim(t) for t in (q, k, v))
        q, k, v = self.act_quantizer_q(q), self.act_quantizer_k(k), self.act_quantizer_v(v)
        weights = self.act_quantizer_softmax(attn.get_attention_scores(q, k, mask))
        out = attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(weights @ v)))
        out = out if len(shape) == 3 else out.transpose(1, 2).reshape(shape)
        return (out + hidden_states if attn.residual_connection else out) / attn.rescale_output_factor


def quantize_products(unet: nn.Module, bits: int, scale_method: Method) -> None:
    """Gives every attention of a diffusers network such a processor."""
    from diffusers.models.attention_processor import Attention  # late: it takes seconds

    for name, module in list(unet.named_modules()):
        if isinstance(module, Attention):
            processor = QuantizedProducts(module.processor, bits, scale_method)
            for part, quantizer in processor.named_children():
                cast(UniformAffineQuantizer, quantizer).name = f"{name}.processor.{part}"
            processor = processor.to(next(module.parameters()))
            module.set_processor(processor)  # type: ignore[arg-type]  # the annotation names diffusers' own alone


def product_processors(unet: nn.Module) -> list[QuantizedProducts]:
    """Those of a network."""
    return [module for module in unet.modules() if isinstance(module, QuantizedProducts)]
