"""Fitting the hash: bit by bit, the codes' products to the pair labels (paper section 3.3).

Minimises |sum_r y_r y_r^T - b S|^2 greedily over the bits r. With the residual R_r = b S - sum_{q<r} y_q y_q^T a bit
maximises y^T R y, through the surrogate y = tanh(K a / 2). R is never made: with S sparse,

    R y = b S y - sum_q y_q (y_q . y),        dL/da = K^T [-(R + R^T) y (1 - y^2) / 2] / (N b B H).

Shapes: B batch, H heads, N tokens, C head width, m supports, b bits, k labels of each sign in a row.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ecoformer.method.kernel_hash import KernelHash, bandwidth, full_precision, kernel_values, squared_distances
from ecoformer.method.similarity import PairLabels, pair_labels
from paperkit.errors import UserError

METHODS = ("released", "adam", "random")
INITS = ("current", "spectral")
SUPPORTS = ("first", "batch", "kmeans")
SMALL = 4_000_000
"""Kernel values below which a fit on a CPU takes one thread."""


@dataclass(frozen=True)
class FitOptions:
    """How a hash is fitted.

    Args:
        method: "released" (SGD with Nesterov momentum), "adam" (moves far enough to matter), or "random" (supports and
            mean alone; the projection stays the random one).
        lr: learning rate; None for the method's own: 0.0005 as released, 0.3 for Adam. Chosen on data that no result
            shows (seeds 100 and up): of 0.003, 0.01, 0.03, 0.1, 0.3 and 1 the label error of the embedded part A is
            0.154, 0.147, 0.142, 0.135, 0.130, 0.128 (8 seeds), and accuracy in part C, with 0.03, 0.1, 0.3 and 1, is
            83.6, 84.1, 84.1, 82.9 % (4, 10, 10, 4 seeds, spread 0.5).
        iterations: steps for each bit.
        momentum, nesterov: of the SGD.
        topk: k, the labels of each sign in a row.
        per_head: take or leave a refined bit for each head by itself. The released fit decides once for all heads and
            samples.
        init: "current" starts from the projection that is there, "spectral" from the top generalised eigenvector of
            K^T R K against K^T K, head by head (the original KSH).
        supports: "first" draws tokens of the first sample, as released; "batch" of all samples; "kmeans" clusters those
            of all samples, head by head.
    """

    method: str = "released"
    lr: float | None = None
    iterations: int = 100
    momentum: float = 0.9
    nesterov: bool = True
    topk: int = 10
    per_head: bool = False
    init: str = "current"
    supports: str = "first"

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("init", INITS), ("supports", SUPPORTS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"fit {name} '{getattr(self, name)}' is none of {', '.join(allowed)}")
        for name in ("iterations", "topk"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"fit {name} {value} is no whole number from 1 on")
        if self.lr is not None and not 0 <= self.lr < float("inf"):
            raise UserError(f"fit lr {self.lr} is no learning rate; 0 at least")
        if not 0 <= self.momentum < 1:
            raise UserError(f"fit momentum {self.momentum} is not from 0 to below 1")

    @property
    def step(self) -> float:
        """The learning rate that holds."""
        return self.lr if self.lr is not None else {"released": 0.0005, "adam": 0.3, "random": 0.0}[self.method]


def fit_options(fit: FitOptions | dict[str, Any] | str | None) -> FitOptions:
    """How a hash is fitted: options, a mapping of them, or the method alone ("adam"); the released fit without.

    Raises:
        UserError: a method or an option that is none.
    """
    if isinstance(fit, FitOptions):
        return fit
    named = {"method": fit} if isinstance(fit, str) else fit or {}
    try:
        return FitOptions(**named)
    except TypeError as error:
        raise UserError(f"fit {fit}: {str(error).removeprefix('FitOptions.__init__() ')}") from None


class Fit(NamedTuple):
    """What a fit found.

    Attributes:
        A, mvec, anchor: as in `KernelHash`.
        sigma: (B, H). kernel: the centred kernel (B, H, N, m).
        codes: kept codes of -1 and +1 (0 for padding) on the tokens of the fit, (B, H, N, b).
        loss_before, loss_after: the hard loss of each bit before and after its refinement, (b,), with acceptance for
            each head (b, H).
        surrogate_first, surrogate_last: surrogate loss before the first and before the last step, (b,).
        accepted: which refinements were kept, of the losses' shape.
    """

    A: Tensor
    mvec: Tensor
    anchor: Tensor
    sigma: Tensor
    kernel: Tensor
    codes: Tensor
    loss_before: Tensor
    loss_after: Tensor
    surrogate_first: Tensor
    surrogate_last: Tensor
    accepted: Tensor


def draw_supports(
    u: Tensor,
    supports: int,
    how: str = "first",
    mask: Tensor | None = None,
    perm: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Supports (1, H, m, C) out of normalised tokens (B, H, N, C), the same tokens for all heads.

    Args:
        supports: m. how: see `FitOptions`.
        mask: (B, N), True for a token.
        perm: the order of the first sample's tokens, in place of a drawn one ("first" alone).

    Raises:
        UserError: fewer tokens than supports.
    """
    u = u.detach()
    heads, width = u.shape[1], u.shape[3]
    if how == "first":
        tokens = u[0] if mask is None else u[0][:, mask[0]]
    else:
        flat = u.transpose(0, 1)  # (H, B, N, C)
        tokens = flat.reshape(heads, -1, width) if mask is None else flat[:, mask]
    count = tokens.shape[1]
    if count < supports:
        where = "the first sample has" if how == "first" else "the batch has"
        more = "; supports='batch' draws them from all samples" if how == "first" and len(u) > 1 else ""
        raise UserError(f"{where} {count} tokens and the hash {supports} supports: take {count} supports at most{more}")
    if perm is None:
        perm = torch.randperm(count, generator=generator)
    chosen = tokens[:, perm[:supports].to(u.device)]
    return (_kmeans(tokens, chosen) if how == "kmeans" else chosen)[None]


def _kmeans(tokens: Tensor, centres: Tensor, rounds: int = 10) -> Tensor:
    """Lloyd's algorithm on the sphere, head by head: (H, n, C), (H, m, C) -> (H, m, C). An empty cluster stays."""
    for _ in range(rounds):
        nearest = (tokens @ centres.mT).argmax(-1, keepdim=True)  # (H, n, 1)
        sums = torch.zeros_like(centres).scatter_add_(1, nearest.expand_as(tokens), tokens)
        lengths = torch.linalg.vector_norm(sums, dim=-1, keepdim=True)
        centres = torch.where(lengths > 0, sums / lengths.clamp_min(1e-12), centres)
    return centres


class _Residual:
    """R + R^T with R = b S - sum_q y_q y_q^T of the kept codes, as products alone; head by head, sample by sample.

    All G = H B of them, heads first, are one sparse matrix. Symmetrised: y^T S y = y^T (S + S^T) y / 2, and the
    gradient takes S + S^T itself.
    """

    def __init__(self, labels: PairLabels, bits: int) -> None:
        columns, values = (t.transpose(0, 1).flatten(0, 1) for t in labels)  # (G, N, 2k)
        groups, tokens, width = columns.shape
        rows = torch.arange(groups * tokens, device=columns.device)
        columns = columns + rows.view(groups, tokens, 1).div(tokens, rounding_mode="floor") * tokens
        rows, columns, values = rows.repeat_interleave(width), columns.flatten(), values.flatten()
        kept = values != 0
        rows, columns, values = rows[kept], columns[kept], values[kept]
        places, total = torch.stack([torch.cat([rows, columns]), torch.cat([columns, rows])]), groups * tokens
        both = torch.sparse_coo_tensor(
            places, bits * torch.cat([values, values]), (total, total), check_invariants=False
        ).coalesce()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls compressed rows a beta
            wide = both.to_sparse_csr()
            # The products of MKL take indices of 32 bits, and copies of others at every call.
            kind = torch.int32 if wide.values().numel() < 2**31 else torch.int64
            crow, column = wide.crow_indices().to(kind), wide.col_indices().to(kind)
            self.symmetric = torch.sparse_csr_tensor(crow, column, wide.values(), wide.shape, check_invariants=False)
        self.room = values.new_empty(groups, bits, tokens)
        self.codes = self.room[:, :0]
        """Kept codes (G, r, N)."""

    def keep(self, y: Tensor) -> None:
        """Subtracts y y^T of a code (G, N)."""
        count = self.codes.shape[1]
        self.room[:, count] = y
        self.codes = self.room[:, : count + 1]

    def product(self, y: Tensor, out: Tensor) -> Tensor:
        """(R + R^T) y, column by column, for contiguous y (G, N, columns); written to `out` of the same shape."""
        torch.mm(self.symmetric, y.view(-1, y.shape[-1]), out=out.view(-1, y.shape[-1]))
        return out.baddbmm_(self.codes.mT, torch.bmm(self.codes, y), alpha=-2)


class _Surrogate:
    """The surrogate of one bit, y = tanh(K a / 2), on tensors that are made once: a step is a dozen small operations.

    Args:
        kernel: centred, (B, H, N, m), padding 0. residual: R. counts: tokens of a sample, () or (B,). bits: b.
    """

    def __init__(self, kernel: Tensor, residual: _Residual, counts: Tensor, bits: int) -> None:
        batch, heads, tokens, supports = kernel.shape
        self.residual, self.counts, self.bits = residual, counts, bits
        self.half = (kernel / 2).transpose(0, 1).reshape(heads, batch * tokens, supports)
        self.scale = -1.0 / (counts[..., None] * (bits * batch * heads))  # 1/2 is in `half`, and R + R^T is twice R
        self.y, self.product_, self.work = (kernel.new_empty(heads, batch, tokens) for _ in range(3))
        self.gradient_ = kernel.new_empty(heads, supports, 1)
        # The same numbers in the shapes of the products, made once.
        self.projections, self.inner = (t.view(heads, batch * tokens, 1) for t in (self.y, self.work))
        self.columns = [t.view(heads * batch, tokens, 1) for t in (self.y, self.product_)]

    def _projected(self, a: Tensor) -> Tensor:
        """K a / 2 of a (H, m) into `y`."""
        torch.bmm(self.half, a[..., None], out=self.projections)
        return self.y

    def _residual_product(self) -> Tensor:
        """(R + R^T) y of `y` into `product_`."""
        self.residual.product(*self.columns)
        return self.product_

    def losses(self) -> Tensor:
        """-y^T R y / (N b) of each head, mean over the samples, of what was computed last: (H,)."""
        return (-(self.y * self.product_).sum(-1) / 2 / (self.counts * self.bits)).mean(1)

    def gradient(self, a: Tensor) -> Tensor:
        """dL/da (H, m), the same tensor at every call; the caller may write to it."""
        y = self._projected(a).tanh_()
        product = self._residual_product()
        torch.addcmul(product, product, torch.mul(y, y, out=self.work), value=-1, out=self.work)  # (1 - y^2) of it
        self.work.mul_(self.scale)
        return torch.bmm(self.half.mT, self.inner, out=self.gradient_)[..., 0]

    def hard(self, a: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes (H, B, N), where 0 becomes -1, other than in the forward pass, and their losses (H,)."""
        y = torch.where(self._projected(a) > 0, 1.0, -1.0).to(self.y.dtype)
        self.y.copy_(y if real is None else y * real)
        self._residual_product()
        return self.y.clone(), self.losses()


@torch.no_grad()
def fit_projection(
    kernel: Tensor, labels: PairLabels, A: Tensor, options: FitOptions, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Greedy bit-by-bit fit of A (H, b, m) on a centred kernel (B, H, N, m).

    Returns:
        The new A, the kept codes (B, H, N, b), and losses and acceptance by name, as in `Fit`.

    Raises:
        UserError: the projection became NaN; with the bit.
    """
    (heads, bits, _), (batch, _, tokens, _) = A.shape, kernel.shape
    A, real = A.clone(), None if mask is None else mask.to(kernel.dtype)  # (B, N)
    counts = kernel.new_tensor(float(tokens)) if real is None else real.sum(-1).clamp_min(1)
    if real is not None:
        kernel = kernel * real[:, None, :, None]
    residual = _Residual(PairLabels(labels.columns, labels.values.to(kernel.dtype)), bits)
    surrogate = _Surrogate(kernel, residual, counts, bits)
    record: dict[str, list[Tensor]] = {
        name: [] for name in ("loss_before", "loss_after", "surrogate_first", "surrogate_last", "accepted")
    }
    for r in range(bits):
        old = A[:, r]
        if options.init == "spectral":
            old = _spectral_start(kernel, residual)
        if options.method == "random":
            new, first, last = old, kernel.new_zeros(()), kernel.new_zeros(())
        else:
            new, first, last = _refine(old, surrogate, options)
        if not bool(torch.isfinite(new).all()):
            raise UserError(
                f"the hash fit became NaN at bit {r + 1} of {bits}; a lower lr than {options.step:g} may do"
            )
        (codes_old, before), (codes_new, after) = surrogate.hard(old, real), surrogate.hard(new, real)
        if not options.per_head:
            before, after = before.mean(), after.mean()
        better = after < before
        A[:, r] = torch.where(better[..., None], new, old)
        residual.keep(torch.where(better[..., None, None], codes_new, codes_old).flatten(0, 1))
        for name, value in zip(record, (before, after, first, last, better), strict=True):
            record[name].append(value)
    codes = residual.codes.unflatten(0, (heads, batch)).permute(1, 0, 3, 2)
    return A, codes, {name: torch.stack(values) for name, values in record.items()}


def _refine(a: Tensor, surrogate: _Surrogate, options: FitOptions) -> tuple[Tensor, Tensor, Tensor]:
    """(refined vector, surrogate loss before the first step, before the last)."""
    a, losses = a.clone(), []
    moments = (torch.zeros_like(a), torch.zeros_like(a))
    for step in range(1, options.iterations + 1):
        gradient = surrogate.gradient(a)
        if step in (1, options.iterations):
            losses.append(surrogate.losses().mean())
        if options.method == "adam":
            moments[0].mul_(0.9).add_(gradient, alpha=0.1)
            moments[1].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            size = (moments[1] / (1 - 0.999**step)).sqrt_().add_(1e-12)
            a.addcdiv_(moments[0], size, value=-options.step / (1 - 0.9**step))
            continue
        moments[0].mul_(options.momentum).add_(gradient)
        way = gradient.add_(moments[0], alpha=options.momentum) if options.nesterov else moments[0]
        a.add_(way, alpha=-options.step)
    return a, losses[0], losses[-1]


def _spectral_start(kernel: Tensor, residual: _Residual) -> Tensor:
    """Top generalised eigenvector of K^T R K against K^T K, head by head, with a^T K^T K a = N: (H, m)."""
    batch, heads, tokens, supports = kernel.shape
    gram = (kernel.mT @ kernel).mean(0)
    gram = gram + 1e-6 * torch.eye(supports, dtype=gram.dtype, device=gram.device)
    columns = kernel.transpose(0, 1).reshape(-1, tokens, supports)
    wanted = columns.mT @ residual.product(columns, torch.empty_like(columns)) / 2
    wanted = wanted.unflatten(0, (heads, batch)).mean(1)
    values, vectors = torch.linalg.eigh(gram)
    whitener = vectors / values.clamp_min(1e-12).sqrt()[..., None, :]
    top = torch.linalg.eigh(whitener.mT @ (wanted + wanted.mT) / 2 @ whitener).eigenvectors[..., -1:]
    return (whitener @ top).squeeze(-1) * tokens**0.5


@contextlib.contextmanager
def _one_thread(kernel: Tensor) -> Iterator[None]:
    """Thousands of steps of tenths of a millisecond: waiting for a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    alone = kernel.device.type == "cpu" and kernel.numel() < SMALL
    try:
        if alone:
            torch.set_num_threads(1)
        yield
    finally:
        if alone:
            torch.set_num_threads(threads)


@torch.no_grad()
def fit_hash(
    u: Tensor,
    A: Tensor,
    options: FitOptions | None = None,
    *,
    anchor: Tensor | None = None,
    labels: PairLabels | None = None,
    mask: Tensor | None = None,
    perm: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Fit:
    """Supports, mean and projection for the tokens of a batch.

    Args:
        u: normalised tokens (B, H, N, C).
        A: (H, b, m) to start from; its m is the number of supports.
        options: how; the released fit without.
        anchor, labels: supports (1, H, m, C) and pair labels, in place of those drawn and computed from `u`.
        mask: (B, N), True for a token. Padding is in no pair and no mean.
        perm: order of tokens from which "first" takes its supports.
        generator: for drawing supports.

    Raises:
        UserError: fewer tokens than supports or labels; a fit that became NaN.

    Example:
        >>> fit = fit_hash(normalise(qk), layer.A, FitOptions("adam"))
        >>> layer.set_fit(fit.A, fit.mvec, fit.anchor)
    """
    options = options or FitOptions()
    with full_precision(u):
        u = u.detach()
        if anchor is None:
            anchor = draw_supports(u, A.shape[-1], options.supports, mask, perm, generator)
        sigma = bandwidth(u, anchor, mask)
        raw = kernel_values(squared_distances(u, anchor), sigma)
        if mask is None:
            mvec = raw.mean(2).mean(0)
        else:
            real = mask[:, None, :, None].to(raw.dtype)
            mvec = ((raw * real).sum(2) / real.sum(2).clamp_min(1)).mean(0)
        mvec = mvec[None, :, None]
        kernel = raw - mvec
        labels = labels if labels is not None else pair_labels(u, options.topk, mask)
        with _one_thread(kernel):
            fitted, codes, record = fit_projection(kernel, labels, A.detach().to(u.dtype), options, mask)
    return Fit(fitted, mvec, anchor, sigma, kernel, codes, **record)


def fit_layer(
    layer: KernelHash,
    u: Tensor,
    options: FitOptions | None = None,
    mask: Tensor | None = None,
    perm: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Fit | None:
    """Fits a hash on normalised tokens (B, H, N, C) and leaves the result in it.

    With several processes the first one fits, on its own batch, and the others take its result, or its failure; they
    return None.

    Raises:
        UserError: as `fit_hash`, or tokens that are NaN or infinite; in every process.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    fit, told = None, [""]
    if not several or torch.distributed.get_rank() == 0:
        try:
            if not bool(torch.isfinite(u).all()):
                raise UserError("it cannot be fitted: its query-key vectors are NaN or infinite")
            fit = fit_hash(u, layer.A, options, mask=mask, perm=perm, generator=generator)
            layer.set_fit(fit.A, fit.mvec, fit.anchor)
        except UserError as error:
            told = [str(error)]
    if several:
        torch.distributed.broadcast_object_list(told, 0, device=u.device)
    if told[0]:
        raise UserError(told[0], everywhere=True)
    if several:
        for tensor in (layer.A.data, layer.mvec, layer.anchor):
            torch.distributed.broadcast(tensor, 0)
        layer.mark_fitted(True)
    return fit
