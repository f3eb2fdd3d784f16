"""Self-attention of one bit: signs of q, k and v, binary scores, plain sums (sections 3.1 and 3.2).

    l = (sign(q) sign(k)^T) / sqrt(d),   b = rule(l) in {0, 1},   out = b sign(v)

The sums are integers and are not divided by the row count. Relative position bias and masks stay float and are added
to l before the rule. The classes stand in the places of timm's, and take what its blocks pass.

Shapes: B batch, N tokens, M keys, H heads, d head width, C = H d channels, W windows, T blocks.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from bivit.method.binary_linear import RULES, BinaryLinear, LinearRule
from bivit.method.elastic import Elastic
from bivit.method.sign import Sign, Zero
from bivit.method.softmax_aware import SoftmaxAware, best_scale
from paperkit.errors import UserError

Normalize = Literal["none", "count"]


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32 at least, whatever autocast says: half precision rounds sums above 256 (bf16) or 2048 (fp16)."""
    kind = torch.promote_types(a.dtype, torch.float32)
    if not a.is_meta and torch.is_autocast_enabled(a.device.type):
        with torch.autocast(a.device.type, enabled=False):
            return a.to(kind) @ b.to(kind)
    return a.to(kind) @ b.to(kind)


class BinaryAttention(nn.Module):
    """Attention over tokens (B, N, C): `BiAttention_SAB` of the released code with the defaults, for timm's ViT.

    Args:
        dim: channels of the tokens.
        num_heads: H.
        linear: rule of qkv and proj.
        scores: layer from logits to binary scores; SAB by default.
        head_dim: d, dim / H by default. out_dim: channels after proj, dim by default.
        normalize: "count" divides by the number of active keys, without a gradient of its own. The signs that proj
            takes do not change, but its window for the gradient then covers means instead of sums.
        v_scale: multiplies by the mean of the active softmax scores (v of equation 7), likewise.
        zero: sign(0) of all inputs.
        attn_drop: on the logits, as released. proj_drop: after proj.

    Raises:
        UserError: heads that do not divide the channels.

    Example:
        >>> BinaryAttention(384, 6)(torch.randn(2, 197, 384)).shape
        torch.Size([2, 197, 384])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        linear: LinearRule = RULES["pws"],
        scores: nn.Module | None = None,
        *,
        head_dim: int | None = None,
        out_dim: int | None = None,
        normalize: Normalize = "none",
        v_scale: bool = False,
        zero: Zero = "ternary",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or (head_dim is None and dim % num_heads):
            raise UserError(f"{dim} channels cannot be split into {num_heads} heads of one width")
        if normalize not in ("none", "count"):
            raise UserError(f"normalize '{normalize}' does not exist; known: none, count")
        self.num_heads, self.head_dim = num_heads, head_dim or dim // num_heads
        self.scale = self.head_dim**-0.5
        self.normalize, self.v_scale = normalize, v_scale
        self._make_projections(dim, linear, zero)
        inner = num_heads * self.head_dim
        self.proj = BinaryLinear(inner, out_dim or dim, linear, zero)
        self.proj_drop = nn.Dropout(proj_drop)
        self.attn_drop = nn.Dropout(attn_drop)
        self.scores = SoftmaxAware() if scores is None else scores

        def one_bit() -> nn.Module:
            elastic = linear.inputs == "elastic"
            return Elastic(signed=True, shift=inner) if elastic else Sign(linear.input_gradient, zero)

        self.binarize_q, self.binarize_k, self.binarize_v = one_bit(), one_bit(), one_bit()

    def _make_projections(self, dim: int, linear: LinearRule, zero: Zero) -> None:
        self.qkv = BinaryLinear(dim, 3 * self.num_heads * self.head_dim, linear, zero)

    def heads(self, x: Tensor) -> Tensor:
        """(B, N, H d) -> (B, H, N, d)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """Signs (B, H, N, d), (B, H, M, d) -> (B, H, N, M). The product first, then the scale, as released."""
        dot = q @ k.mT
        return dot.to(torch.promote_types(dot.dtype, torch.float32)) * self.scale

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, blind: Tensor | None = None
    ) -> Tensor:
        """q (B, N, H d), k and v (B, M, H d) before the sign -> sums (B, H, N, d).

        Args:
            bias: added to the logits (B, H, N, M). Its first dimension may divide B; it then repeats.
            blind: True for queries that see no key and get 0, (..., N, 1).
        """
        dtype = q.dtype
        q, k, v = (self.heads(self.binarize_q(q)), self.heads(self.binarize_k(k)), self.heads(self.binarize_v(v)))
        logits = self.logits(q, k)
        if bias is not None:
            repeats = bias.shape[0] if bias.dim() == 4 else 1
            logits = (logits.unflatten(0, (-1, repeats)) + bias).flatten(0, 1)
        logits = self.attn_drop(logits)
        attn = self.scores(logits)
        if blind is not None:
            attn = attn.masked_fill(blind, 0)
        out = wide_product(attn, v)
        if self.normalize == "count":
            out = out / attn.detach().ne(0).sum(-1, keepdim=True).clamp(min=1)
        if self.v_scale:
            out = out * best_scale(logits.detach().softmax(-1), attn.detach().ne(0).to(logits.dtype))
        return out.to(dtype)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C).

        Args:
            attn_mask: added to the logits, or False where a key is hidden; any shape that fits (B, H, N, N).
            is_causal: hides later tokens, and takes precedence over the mask, as in timm.
        """
        q, k, v = self.qkv(x).chunk(3, -1)
        bias = attn_mask
        if is_causal:
            bias = x.new_full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        elif attn_mask is not None and attn_mask.dtype == torch.bool:
            bias = torch.zeros_like(attn_mask, dtype=x.dtype).masked_fill(~attn_mask, -torch.inf)
        blind = None
        if bias is not None:  # a softmax over nothing but -inf would be NaN
            blind = (bias == -torch.inf).all(-1, keepdim=True)
            bias = bias.masked_fill(blind, 0)
        out = self.attend(q, k, v, bias, blind).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))


class WindowAttention(BinaryAttention):
    """Swin's attention inside windows: bias table and shift mask before the rule, both float.

    Args:
        window_size: height and width of a window.
        others: of `BinaryAttention`.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        linear: LinearRule = RULES["pws"],
        scores: nn.Module | None = None,
        *,
        head_dim: int | None = None,
        normalize: Normalize = "none",
        v_scale: bool = False,
        zero: Zero = "ternary",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim, num_heads, linear, scores, head_dim=head_dim, normalize=normalize, v_scale=v_scale, zero=zero,
            attn_drop=attn_drop, proj_drop=proj_drop,
        )  # fmt: skip
        height, width = self.window_size = window_size
        entries = (2 * height - 1) * (2 * width - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(entries, num_heads))
        self.register_buffer("relative_position_index", relative_positions(height, width), persistent=False)

    def position_bias(self) -> Tensor:
        """(1, H, N, N), N the tokens of a window."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Changes the window, the bias table resized as timm does (`SwinTransformer.set_input_size` calls this)."""
        if tuple(window_size) == tuple(self.window_size):
            return
        from timm.layers import resize_rel_pos_bias_table

        old, (height, width) = self.window_size, window_size
        shape = ((2 * height - 1) * (2 * width - 1), self.num_heads)
        table = self.relative_position_bias_table
        with torch.no_grad():
            resized = resize_rel_pos_bias_table(table, (height, width), shape, old)
        self.relative_position_bias_table = nn.Parameter(resized, requires_grad=table.requires_grad)
        self.relative_position_index = relative_positions(height, width).to(table.device)
        self.window_size = (height, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """(B W, N, C) -> (B W, N, C); mask (W, N, N) is 0 or -100."""
        q, k, v = self.qkv(x).chunk(3, -1)
        bias = self.position_bias()
        if mask is not None:
            bias = bias + mask[:, None]
        out = self.attend(q, k, v, bias).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))


def relative_positions(height: int, width: int) -> Tensor:
    """(N, N): which row of the bias table belongs to two tokens of a window (Swin, section 3.2)."""
    place = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).flatten(1)
    offset = place[:, :, None] - place[:, None, :]
    return (offset[0] + height - 1) * (2 * width - 1) + offset[1] + width - 1


class BlockAttention(BinaryAttention):
    """NesT's attention inside blocks. Heads are joined with the head index fastest, as timm's weights need it."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T, N, C) -> (B, T, N, C)."""
        q, k, v = self.qkv(x.flatten(0, 1)).chunk(3, -1)
        out = self.attend(q, k, v).permute(0, 2, 3, 1).flatten(2)
        return self.proj_drop(self.proj(out)).view(x.shape)


class ReducedAttention(BinaryAttention):
    """PVTv2's attention: keys and values from a map made smaller by a float convolution and norm.

    Args:
        reduction: (B, C, height, width) map -> a smaller one, or None. norm: of the reduced tokens, or None.
        others: of `BinaryAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        linear: LinearRule = RULES["pws"],
        scores: nn.Module | None = None,
        *,
        reduction: nn.Module | None = None,
        norm: nn.Module | None = None,
        normalize: Normalize = "none",
        v_scale: bool = False,
        zero: Zero = "ternary",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim, num_heads, linear, scores, normalize=normalize, v_scale=v_scale, zero=zero, attn_drop=attn_drop,
            proj_drop=proj_drop,
        )  # fmt: skip
        self.sr, self.norm = reduction, norm

    def _make_projections(self, dim: int, linear: LinearRule, zero: Zero) -> None:
        self.q, self.kv = BinaryLinear(dim, dim, linear, zero), BinaryLinear(dim, 2 * dim, linear, zero)

    def forward(self, x: Tensor, feat_size: list[int]) -> Tensor:  # type: ignore[override]
        """(B, N, C) with N = height x width of `feat_size` -> (B, N, C)."""
        source = x
        if self.sr is not None:
            source = self.sr(x.mT.unflatten(-1, tuple(feat_size))).flatten(2).mT
        if self.norm is not None:
            source = self.norm(source)
        k, v = self.kv(source).chunk(2, -1)
        out = self.attend(self.q(x), k, v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))
