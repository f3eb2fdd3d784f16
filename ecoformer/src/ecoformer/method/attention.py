"""EcoFormer self-attention: shared query-key vectors, hashed, attended in linear time (paper section 3).

Shapes: B batch, H heads, N tokens, D dim = H C, C head width, m supports, b bits.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.method.fused_attention_native import native_attention
from ecoformer.method.hash_fit import FitOptions, fit_layer, fit_options
from ecoformer.method.kernel_hash import KernelHash, normalise
from ecoformer.method.linear_attention import (
    BIAS_MODES,
    bias_value,
    causal_attention,
    explicit_attention,
    linear_attention,
    sdpa_attention,
)
from ecoformer.method.softmax_attention import check_heads, join_heads, split_heads
from paperkit.errors import UserError

BACKENDS = ("auto", "explicit", "sdpa", "linear")
TRITON_DEVICES = ("cuda",)
"""Kinds of devices on which inference goes through the Triton kernels; on a CPU it goes through those in C++."""


class BinaryAttention(nn.Module):
    """Hash, then attention between codes, on tensors already split into heads (released name `fast_attention`).

    Args:
        heads, head_dim: H and C. nbits: b. supports: m.
        bias_mode: "released" (a token's own value, as the authors' weights need) or "global" (the consistent form).
        bias: "plus_one" (b + 1), "pow2" (the next power of two), or a number above b.
        backend: "linear", "explicit" (the N x N map), "sdpa" (torch's fused attention over the map's logarithm, global
            bias only), or "auto": explicit for so few tokens that the map takes fewer multiply-adds than the state (24
            tokens with 16 bits, which is where their times meet as measured), linear from there on. It never takes
            "sdpa", which makes the map as well and was slower than linear at every size; softmax layers are where SDPA
            is chosen by size (`ecoformer.method.softmax_attention.chosen`).
        power: exponent of the similarity, above 0; other than 1 needs the global bias and makes the N x N map.
        trainable: see `KernelHash`.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        nbits: int = 16,
        supports: int = 25,
        bias_mode: str = "released",
        bias: str | float = "plus_one",
        backend: str = "auto",
        power: float = 1.0,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        if bias_mode not in BIAS_MODES:
            raise UserError(f"bias_mode '{bias_mode}' is none of {', '.join(BIAS_MODES)}")
        if backend not in BACKENDS:
            raise UserError(f"backend '{backend}' is none of {', '.join(BACKENDS)}")
        if not 0 < power < float("inf"):  # nan is neither
            raise UserError(f"power {power} of the similarity is not above 0")
        if bias_mode == "released" and (backend == "sdpa" or power != 1):
            what = "backend 'sdpa'" if backend == "sdpa" else f"power {power}"
            raise UserError(f"{what} needs bias_mode 'global': the released form has weights below 0")
        if power != 1 and backend in ("linear", "sdpa"):
            raise UserError(f"power {power} needs backend 'explicit': a power of a product is no product")
        self.bias_mode, self.backend, self.power = bias_mode, backend, power
        self.bias = bias_value(nbits, bias)
        self.ksh = KernelHash(heads, head_dim, nbits, supports, trainable)

    def chosen(self, tokens: int) -> str:
        """The backend for so many tokens."""
        if self.backend != "auto":
            return self.backend
        bits, width = self.ksh.nbits, self.ksh.head_dim
        few = tokens * (bits + width) <= 2 * bits * width  # multiply-adds of the map against those of the state
        return "explicit" if few or self.power != 1 else "linear"

    def forward(self, u: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Normalised tokens and values, (B, H, N, C) each, to (B, H, N, C)."""
        codes, backend = self.ksh(u, mask, causal), self.chosen(u.shape[2])
        if backend == "sdpa":
            return sdpa_attention(codes, codes, v, self.bias, self.bias_mode, mask, causal)
        if backend == "explicit":
            return explicit_attention(codes, codes, v, self.bias, self.bias_mode, mask, causal, self.power)
        form = causal_attention if causal else linear_attention
        return form(codes, codes, v, self.bias, self.bias_mode, mask)

    def by_kernels(self, qk: Tensor, v: Tensor) -> Tensor | None:
        """Unnormalised vectors and values, (B, H, N, C) each, to (B, H, N, C) by the kernels of inference.

        None where they do not serve and the plain form is to be taken: no Triton on CUDA, no compiler on a CPU,
        with gradients, while being traced, with a backend other than "linear" for so many tokens, or beyond the
        kernels' sizes and types.
        """
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if traced or self.chosen(qk.shape[2]) != "linear":
            return None
        ksh = self.ksh
        arguments = qk, v, ksh.anchor, ksh.mvec, ksh.A, self.bias, self.bias_mode
        if qk.device.type not in TRITON_DEVICES:
            return native_attention(*arguments)
        try:
            from ecoformer.method import fused_attention_triton as kernels
        except ImportError:  # no Triton for this system
            return None
        return kernels.launch(*arguments)[0] if kernels.fits(qk, v, ksh.A, self.bias) else None


class EcoFormerAttention(nn.Module):
    """Self-attention over learned binary codes, in place of any self-attention of (B, N, D).

    The hash is fitted on the first batch of training, layer by layer during that forward pass, and kept; `start_epoch`
    asks for another fit. The checkpoint says whether it is fitted. Keys: to_qk, to_v, proj, fast_attention.ksh.*.

    Args:
        dim, num_heads: D and H.
        nbits, supports: b and m.
        qkv_bias: bias of `to_qk` and `to_v`. proj_drop: dropout behind `proj`.
        fit: how the hash is fitted: options, a mapping of them, or a method's name; the released fit without.
        causal: each token attends to those before it and itself, sigma included.
        binary: further options of `BinaryAttention`.

    Raises:
        UserError: when called in eval mode with a hash that was never fitted; fewer tokens than supports or labels at
            the fit.

    Example:
        >>> layer = EcoFormerAttention(64, 2)
        >>> y = layer(x)        # training: fits itself on x, (B, N, 64)
        >>> y = layer.eval()(x, mask=mask)
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        nbits: int = 16,
        supports: int = 25,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        fit: FitOptions | dict[str, Any] | str | None = None,
        causal: bool = False,
        **binary: Any,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.causal = num_heads, check_heads(dim, num_heads), causal
        self.to_qk = nn.Linear(dim, dim, bias=qkv_bias)
        self.to_v = nn.Linear(dim, dim, bias=qkv_bias)
        self.fast_attention = BinaryAttention(num_heads, self.head_dim, nbits, supports, **binary)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.fit_options = fit_options(fit)
        self.fit_in_eval = False
        self.name = ""
        """Where the layer stands in its network, for messages; `name_layers` sets it."""

    @property
    def ksh(self) -> KernelHash:
        """The hash."""
        return self.fast_attention.ksh

    def forward(
        self, x: Tensor, size: Any = None, mask: Tensor | None = None, perm: Tensor | None = None, **other: Any
    ) -> Tensor:
        """(B, N, D) -> (B, N, D).

        Args:
            size: a grid, which plays no role here. mask: (B, N), True for a token; padding is left out of sigma, sums,
                counts and labels, and comes out as the bias of `proj`.
            perm: the order of tokens from which a fit takes its supports, in place of a drawn one.
            other: `attn_mask` and `is_causal` as timm's blocks pass them; only None and False are taken.
        """
        if x.dim() != 3:
            raise UserError(f"tokens of shape {tuple(x.shape)} are not (batch, tokens, channels)")
        if other.get("attn_mask") is not None or other.get("is_causal"):
            raise UserError("an N x N attention mask has no linear form; pass mask=(B, N), or build with causal=True")
        qk, v = (split_heads(layer(x), self.num_heads) for layer in (self.to_qk, self.to_v))
        plain = mask is not None or self.causal or not self.ksh.is_fitted
        out = None if plain else self.fast_attention.by_kernels(qk, v)
        if out is None:
            u = normalise(qk)
            if not self.ksh.is_fitted:
                self._fit(u, mask, perm)
            out = self.fast_attention(u, v, mask, self.causal)
        return self.proj_drop(self.proj(join_heads(out).to(x.dtype)))

    @torch.compiler.disable
    @torch.no_grad()  # activation checkpointing must keep the same tensors when it computes a fitting block again
    def _fit(self, u: Tensor, mask: Tensor | None, perm: Tensor | None) -> None:
        where = f"the hash of {self.name or 'an EcoFormer layer'}"
        if not (self.training or self.fit_in_eval):
            raise UserError(
                f"{where} was never fitted; fit it with fit_hashes(model, inputs), or load a fitted checkpoint"
            )
        try:
            fit_layer(self.ksh, u, self.fit_options, mask, perm)
        except UserError as error:
            raise UserError(f"{where}: {error}", everywhere=error.everywhere) from None
        self.fit_in_eval = False


def eco_layers(model: nn.Module) -> Iterable[tuple[str, EcoFormerAttention]]:
    """Every EcoFormer layer of a network with its name, in order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, EcoFormerAttention))


def name_layers(model: nn.Module) -> None:
    """Tells every layer its place, so that an error can name it."""
    for name, layer in eco_layers(model):
        layer.name = name


def ask_for_fit(model: nn.Module) -> None:
    """Lets every layer fit its hash at the next forward pass, in eval mode as well, from the projection it has."""
    for name, layer in eco_layers(model):
        layer.name, layer.fit_in_eval = name, True
        layer.ksh.mark_fitted(False)


def start_epoch(model: nn.Module, epoch: int, refit_every: int | None = None) -> bool:
    """The fit's schedule, called when an epoch (from 0 on) begins: whether a fit is asked for.

    Without `refit_every` the hash is fitted once: layers that hold a fit keep it. The released schedule is 300 with 30
    epochs, so once as well, but from the first batch on whatever a checkpoint holds.
    """
    if refit_every is not None:
        if refit_every < 1:
            raise UserError(f"refit_every {refit_every} is no number of epochs; 1 at least, or None for one fit")
        if epoch % refit_every == 0:
            ask_for_fit(model)
            return True
        return False
    waiting = [layer for _, layer in eco_layers(model) if not layer.ksh.is_fitted]
    for layer in waiting:
        layer.fit_in_eval = True
    return bool(waiting)


@torch.no_grad()
def fit_hashes(model: nn.Module, *inputs: Any, **named: Any) -> None:
    """Fits every hash of a network by one forward pass over `inputs`, layer by layer; the network's mode stays.

    Raises:
        UserError: as `EcoFormerAttention`; with the layer's name. The hashes are then what they were.
    """
    layers = [layer for _, layer in eco_layers(model)]
    before = [(layer.fit_in_eval, copy.deepcopy(layer.ksh.state_dict())) for layer in layers]
    ask_for_fit(model)
    try:
        model(*inputs, **named)
        if waiting := [name for name, layer in eco_layers(model) if not layer.ksh.is_fitted]:
            raise UserError(f"the forward pass did not reach {', '.join(waiting[:3])}")
    except BaseException:
        for layer, (fit_in_eval, hash_) in zip(layers, before, strict=True):
            layer.fit_in_eval = fit_in_eval
            layer.ksh.load_state_dict(hash_)
        raise
