"""The hash and its fit, as both engines on real data take them: options, and what a training step owes to a fit."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ecoformer.method.attention import eco_layers
from paperkit.errors import UserError
from paperkit.training.savings import EMA, Savings


@dataclass(frozen=True)
class HashConfig:
    """Codes, supports, bias, and how the hash is fitted; the defaults are the released ones.

    Args:
        nbits: b, bits of a code. supports: m. topk: k, pair labels of each sign in a row.
        bias_mode: `released` (a token's own value) or `global` (the consistent form). bias: `plus_one`, `pow2`, or a
            number above b.
        backend: `auto`, `linear`, `explicit`, or `sdpa` (global bias alone).
        fit: `released` (moves little), `adam` (moves enough to matter), or `random` (the projection stays as drawn).
        fit_lr: of the fit; the method's own without. iterations: of each bit.
        per_head: keep a refined bit for each head by itself. init: `current` or `spectral`.
        supports_from: `first` sample of the batch, whole `batch`, or `kmeans` over it.
    """

    nbits: int = 16
    supports: int = 25
    topk: int = 10
    bias_mode: Literal["released", "global"] = "released"
    bias: float | str = "plus_one"
    backend: Literal["auto", "linear", "explicit", "sdpa"] = "auto"
    fit: Literal["released", "adam", "random"] = "released"
    fit_lr: float | None = None
    iterations: int = 100
    per_head: bool = False
    init: Literal["current", "spectral"] = "current"
    supports_from: Literal["first", "batch", "kmeans"] = "first"

    def fit_options(self) -> dict[str, Any]:
        """Arguments of `ecoformer.method.hash_fit.FitOptions`."""
        return dict(method=self.fit, lr=self.fit_lr, iterations=self.iterations, topk=self.topk,
                    per_head=self.per_head, init=self.init, supports=self.supports_from)  # fmt: skip

    def options(self) -> dict[str, Any]:
        """Arguments of a network of ours: what of the hash is its own, and `fit` as plain values."""
        return dict(nbits=self.nbits, supports=self.supports, bias_mode=self.bias_mode, bias=self.bias,
                    backend=self.backend, fit=self.fit_options())  # fmt: skip

    def check(self) -> None:
        """Refuse what cannot be fitted, whatever the network.

        Raises:
            UserError: fewer than one bit, or fewer supports than labels in a row.
        """
        if not isinstance(self.nbits, int) or self.nbits < 1:
            raise UserError(f"hash.nbits {self.nbits} is no length of a code; 16 as released, odd ones work too")
        if self.supports < self.topk:
            raise UserError(
                f"hash.supports {self.supports} are fewer than hash.topk {self.topk}: labels of one row would be "
                "more than the kernel's values; as released 25 and 10"
            )

    def check_tokens(self, tokens: int, where: str) -> None:
        """Refuse a layer with fewer tokens than the fit needs of a sample.

        Raises:
            UserError: naming the layer.
        """
        if tokens < self.topk:
            raise UserError(f"{where} has {tokens} tokens and hash.topk is {self.topk}: take {tokens} at most")
        if self.supports_from == "first" and tokens < self.supports:
            raise UserError(
                f"{where} has {tokens} tokens and the hash {self.supports} supports: take hash.supports {tokens} at "
                "most, a larger input, or hash.supports_from batch"
            )


def check_switches(savings: Savings, ema: EMA, refits: str = "") -> None:
    """Refuse savings that a network with hashes cannot take.

    Args:
        refits: the option that asks for more than one fit, with its value; empty for one fit.

    Raises:
        UserError: naming both sides.
    """
    if ema.decay is not None and refits:
        raise UserError(f"ema.decay {ema.decay} and {refits}: the mean of two fits of a hash is no hash")
    if savings.compile:
        raise UserError(
            "compile is not for EcoFormer's training: the hash is fitted within the forward pass; compile the trained "
            "network, or train another attention"
        )


@torch.no_grad()
def fit_ahead(network: nn.Module, inputs: Tensor, savings: Savings) -> None:
    """Fits the hashes that wait for it by a pass of its own, where activations are computed again.

    A fit draws its supports. A block that fits, and is then computed again without a fit, would draw another dropout.
    """
    if savings.checkpointing and any(not layer.ksh.is_fitted for _, layer in eco_layers(network)):
        network(inputs)
