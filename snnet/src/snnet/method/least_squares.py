"""Least-squares initialisation of stitching layers (paper, section 3.3: M = argmin ||A M - B||_F).

A stitch (p, q) maps the front anchor's output of block p to what the end anchor feeds its block q, that is the output
of its block q - 1 (q = 0: the embedded tokens, or the stage's input). A layer that several cuts share gets the mean of
their solutions, as in the released code, or one joint solution.

Shapes: n rows (images x tokens), D_i and D_j widths; a solution has D_i + 1 rows, the last one the bias.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from snnet.method.steps import Step
from snnet.method.stitching import StitchedNetwork, StitchingLayer

ROWS = 4096  # rows of a slice of activations in the streamed products
Solver = Literal["pinv", "gram"]
Position = tuple[int, int, int]
"""(anchor, stage, block): the activation after that block; block -1 is what enters block 0 of the stage."""


def solve_pinv(x: Tensor, y: Tensor) -> Tensor:
    """Minimum-norm solution of [x, 1] A = y, float32 pseudo-inverse at its default tolerance (n x machine epsilon).

    That tolerance cuts the weakest directions of ill-conditioned activations, which acts as regularisation; the
    released code relies on it.

    Args:
        x: (n, D_i).
        y: (n, D_j).

    Returns:
        A (D_i + 1, D_j).
    """
    return torch.linalg.pinv(with_bias(x.float())) @ y.float()


def ridge_factor(gram: Tensor) -> Tensor:
    """Cholesky factor of the accumulated [x, 1]^T [x, 1], for `torch.cholesky_solve` with [x, 1]^T y.

    With a ridge of 1e-9 of the mean diagonal, enlarged tenfold while the factorisation fails; so directions without
    data get (almost) nothing, as in the minimum-norm solution.

    Args:
        gram: (D_i + 1, D_i + 1), float64.
    """
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    ridge = 1e-9 * gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny)
    while True:
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * identity)
        if not failed:
            return factor
        ridge = ridge * 10


def with_bias(x: Tensor) -> Tensor:
    """(n, D) -> (n, D + 1), a column of ones at the end."""
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


@dataclass(frozen=True)
class Fit:
    """What one layer's fit left: the relative residual ||x A - y|| / ||y|| over all of its cuts together."""

    residual: float
    cuts: tuple[tuple[int, int], ...]


@torch.no_grad()
def initialise(
    network: StitchedNetwork,
    images: Iterable[Tensor],
    solver: Solver = "pinv",
    combine: Literal["mean", "joint"] = "mean",
    products: torch.dtype = torch.float64,
) -> dict[Step, Fit]:
    """Set every stitching layer by least squares on the activations of the anchors (in eval mode).

    Args:
        images: batches (B, 3, H, W); about 100 images suffice.
        solver: "pinv" keeps the activations of all images in memory and solves as the released code does. "gram"
            streams: float64 products are accumulated batch by batch, so memory does not grow with the number of images,
            and cuts that leave the front at the same block share one factorisation.
        combine: the solution of a layer with several cuts: "mean" of theirs (released), or "joint" over all of their
            data (optimal for the sum of errors; gram only).
        products: precision of the streamed products before they are added up in float64.

    Returns:
        Per stitching layer, the residual of the weights that it got.
    """
    if combine == "joint" and solver != "gram":
        raise ValueError("the joint solution needs solver='gram'")
    training = network.training
    network.eval()
    try:
        accumulator = KeptActivations(network) if solver == "pinv" else StreamedProducts(network, products)
        for batch in images:
            accumulator.add(activations(network, batch))
        fits = {}
        for step, cuts in network.stitch_steps().items():
            if cuts:  # the released layer assignment may leave a layer without a cut
                solution = accumulator.solve(step, cuts, joint=combine == "joint")
                set_affine(network.stitching_layer(step), solution)
                fits[step] = Fit(accumulator.residual(step, cuts, solution), tuple(cuts))
        return fits
    finally:
        network.train(training)


@torch.no_grad()
def cut_residuals(network: StitchedNetwork, images: Tensor) -> dict[int, float]:
    """How far each stitch's layer is from what its end anchor expects: ||S(x) - y|| / ||y|| by configuration id.

    An extension: the cuts that fit best can be chosen before any training. For configurations of one cut.

    Args:
        images: (B, 3, H, W), others than those of the fit if there are any.
    """
    training = network.training
    network.eval()
    found, residuals = activations(network, images), {}
    for config_id, configuration in enumerate(network.configurations):
        if len(configuration.cuts) == 1:
            front, end = configuration.anchors
            step = Step("stitch", front, configuration.stage or 0, configuration.layers[0], end)
            at, to = ends(step, configuration.cuts[0])
            transform = network.stitching_layer(step).transform
            weight, bias = (cast(Tensor, getattr(transform, name)) for name in ("weight", "bias"))
            fitted = torch.nn.functional.linear(found[at], weight.flatten(1), bias)
            residuals[config_id] = ((fitted - found[to]).norm() / found[to].norm()).item()
    network.train(training)
    return residuals


def set_affine(layer: StitchingLayer, solution: Tensor) -> None:
    """Write a solution (D_i + 1, D_j) into a linear or 1x1 convolutional stitching layer."""
    weight, bias = layer.transform.weight, layer.transform.bias
    assert bias is not None
    weight.copy_(solution[:-1].T.reshape(weight.shape))
    bias.copy_(solution[-1])


def activations(network: StitchedNetwork, images: Tensor) -> dict[Position, Tensor]:
    """Every anchor run on `images` (B, 3, H, W): its activations by position, as rows (B * tokens, D)."""
    found = {}
    for anchor, route in enumerate(network.routes[: len(network.anchors)]):
        x, layout = images, network.families[anchor].layout
        for step in route[:-1]:
            x = network.run(step, x)  # type: ignore[assignment]
            block = step.index if step.kind == "block" else -1
            rows = x.permute(0, 2, 3, 1) if layout == "channels_first" else x
            found[anchor, step.stage, block] = rows.reshape(-1, rows.shape[-1])
    return found


def ends(step: Step, cut: tuple[int, int]) -> tuple[Position, Position]:
    """Where the activations of a cut are read: output of block p of the front, input of block q of the end."""
    assert step.end is not None
    return (step.anchor, step.stage, cut[0]), (step.end, step.stage, cut[1] - 1)


class KeptActivations:
    """All activations kept, solved by pseudo-inverse; one pseudo-inverse serves every cut with the same p."""

    def __init__(self, network: StitchedNetwork) -> None:
        self.network = network
        self.needed = {
            position for step, cuts in network.stitch_steps().items() for c in cuts for position in ends(step, c)
        }
        self.kept: dict[Position, list[Tensor]] = {position: [] for position in self.needed}
        self.inverses: dict[Position, Tensor] = {}

    def add(self, found: Mapping[Position, Tensor]) -> None:
        """Take in the rows of one batch: (anchor, stage, block) -> (B * tokens, D)."""
        for position in self.needed:
            self.kept[position].append(found[position].float().cpu())

    def rows(self, position: Position) -> Tensor:
        if len(self.kept[position]) > 1:
            self.kept[position] = [torch.cat(self.kept[position])]
        return self.kept[position][0]

    def solve(self, step: Step, cuts: list[tuple[int, int]], joint: bool) -> Tensor:
        solutions = []
        for front, end in (ends(step, cut) for cut in cuts):
            if front not in self.inverses:
                self.inverses[front] = torch.linalg.pinv(with_bias(self.rows(front)))
            solutions.append(self.inverses[front] @ self.rows(end))
        return torch.stack(solutions).mean(0)

    def residual(self, step: Step, cuts: list[tuple[int, int]], solution: Tensor) -> float:
        pairs = [(self.rows(front), self.rows(end)) for front, end in (ends(step, cut) for cut in cuts)]
        left = sum((with_bias(x) @ solution - y).square().sum().item() for x, y in pairs)
        return (left / sum(y.square().sum().item() for _, y in pairs)) ** 0.5


class StreamedProducts:
    """Only the products that the normal equations need, summed over batches in float64.

    The solutions of the cuts that share a layer and a front block are averaged, and they are linear in Y: their Ys are
    added up first, so that 22 products serve the 34 cuts of two DeiTs.
    """

    def __init__(self, network: StitchedNetwork, products: torch.dtype) -> None:
        self.network, self.products = network, products
        self.meets: dict[tuple[Step, Position], list[Position]] = {}  # (layer, front) -> the ends that it is fitted to
        for step, cuts in network.stitch_steps().items():
            for front, end in (ends(step, cut) for cut in cuts):
                self.meets.setdefault((step, front), []).append(end)
        self.grams: dict[Position, Tensor] = {}
        self.crosses: dict[tuple[Step, Position], Tensor] = {}
        self.squares: dict[Position, float] = {}
        self.factors: dict[Position, Tensor] = {}

    def add(self, found: Mapping[Position, Tensor]) -> None:
        """Take in the rows of one batch: (anchor, stage, block) -> (B * tokens, D)."""
        rows = max(map(len, found.values()), default=0)  # the stages of a hierarchical family have different numbers
        # In slices that stay in the caches; large temporaries would cost more than the products.
        for start in range(0, rows, ROWS):
            self._add_rows({position: value[start : start + ROWS] for position, value in found.items()})

    def _add_rows(self, found: Mapping[Position, Tensor]) -> None:
        fronts = {front: with_bias(found[front].to(self.products)) for front in {front for _, front in self.meets}}
        tops = {end: found[end].to(self.products) for end in {end for met in self.meets.values() for end in met}}
        for front, x in fronts.items():
            _add(self.grams, front, x.T @ x)
        for end, y in tops.items():
            self.squares[end] = self.squares.get(end, 0.0) + y.square().sum(dtype=torch.float64).item()
        for (step, front), met in self.meets.items():
            y = tops[met[0]] if len(met) == 1 else tops[met[0]] + tops[met[1]]
            for end in met[2:]:
                y = y + tops[end]
            _add(self.crosses, (step, front), fronts[front].T @ y)

    def solve(self, step: Step, cuts: list[tuple[int, int]], joint: bool) -> Tensor:
        fronts = [front for at, front in self.meets if at == step]
        if joint:
            gram = sum(self.grams[front] * len(self.meets[step, front]) for front in fronts)
            assert isinstance(gram, Tensor)
            return torch.cholesky_solve(torch.stack([self.crosses[step, f] for f in fronts]).sum(0), ridge_factor(gram))
        total = [torch.cholesky_solve(self.crosses[step, front], self._factor(front)) for front in fronts]
        return torch.stack(total).sum(0) / len(cuts)

    def _factor(self, front: Position) -> Tensor:
        """One factorisation serves every layer that is met from `front`."""
        if front not in self.factors:
            self.factors[front] = ridge_factor(self.grams[front])
        return self.factors[front]

    def residual(self, step: Step, cuts: list[tuple[int, int]], solution: Tensor) -> float:
        """||x A - y||^2 = tr(A^T G A) - 2 tr(A^T C) + ||y||^2, summed over the cuts."""
        left = total = 0.0
        for (at, front), met in self.meets.items():
            if at == step:
                quadratic = len(met) * (self.grams[front] @ solution) - 2 * self.crosses[step, front]
                left += (solution * quadratic).sum().item()
                total += sum(self.squares[end] for end in met)
        return (max(left + total, 0.0) / total) ** 0.5


def _add(sums: dict[Any, Tensor], key: Any, product: Tensor) -> None:
    if key in sums:
        sums[key] += product
    else:
        sums[key] = product.double()
