"""Which bit width the activations have at each step (section 8 of the method); weights keep one width.

Shapes: S sampled steps, ascending in time.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.bounded import read_json
from ptq4dm.method.range_search import check_bits


@dataclass(frozen=True)
class BitSchedule:
    """Widths by time step, ascending.

    Raises:
        UserError: steps that are not ascending, or bits outside 2 to 8.
    """

    timesteps: tuple[int, ...]
    activation_bits: tuple[int, ...]
    weight_bits: int = 4

    def __post_init__(self) -> None:
        if not self.timesteps or sorted(set(self.timesteps)) != list(self.timesteps):
            raise UserError(f"bit schedule: time steps {str(self.timesteps)[:80]} are not ascending, each once")
        if len(self.timesteps) != len(self.activation_bits):
            raise UserError(f"bit schedule: {len(self.timesteps)} steps and {len(self.activation_bits)} widths")
        for bits in {*self.activation_bits, self.weight_bits}:
            check_bits(bits, "bit schedule")

    def bits(self) -> dict[int, int]:
        """Time step -> bits of the activations."""
        return dict(zip(self.timesteps, self.activation_bits, strict=True))

    def mean_bits(self) -> float:
        """Of the activations, over the steps."""
        return sum(self.activation_bits) / len(self.activation_bits)

    def smoothed(self) -> "BitSchedule":
        """Bits that never fall towards t = 0: the running maximum from the noisiest step on."""
        widest, found = 0, []
        for bits in reversed(self.activation_bits):
            widest = max(widest, bits)
            found.append(widest)
        return BitSchedule(self.timesteps, tuple(reversed(found)), self.weight_bits)

    def reversed(self) -> "BitSchedule":
        """The same widths in opposite order: the control at equal cost."""
        return BitSchedule(self.timesteps, self.activation_bits[::-1], self.weight_bits)

    def save(self, path: str | Path) -> None:
        """Writes it as JSON, a row for each step, noisiest first."""
        rows = [
            {"timestep": t, "weight_bits": self.weight_bits, "activation_bits": bits}
            for t, bits in reversed(self.bits().items())
        ]
        write_atomic(path, json.dumps(rows, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "BitSchedule":
        """Reads what `save` wrote.

        Raises:
            UserError: unreadable, or no such file.
        """
        rows = read_json(path, "bit schedule")
        try:
            found = sorted((int(row["timestep"]), int(row["activation_bits"])) for row in rows)
            weights = {int(row.get("weight_bits", 4)) for row in rows}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no list of time steps and bits") from error
        if len(weights) != 1:
            raise UserError(f"{path}: weights have {sorted(weights)} bits; one width serves all steps")
        return cls(tuple(t for t, _ in found), tuple(bits for _, bits in found), weights.pop())


def forward_snr(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """SNR of the forward process, `alpha / (1 - alpha)` (S,)."""
    alphas = alphas_cumprod.double()[timesteps]
    return alphas / (1 - alphas)


def snr_schedule(
    snr: Mapping[int, Tensor], timesteps: Tensor, alphas_cumprod: Tensor, weight_bits: int = 4
) -> BitSchedule:
    """The smallest width whose prediction has a higher SNR than the forward process; the largest if none has.

    Args:
        snr: bits of the activations -> SNR of the quantised prediction (S,), of `NoiseStatistics`.
        timesteps: (S,), ascending.

    Raises:
        UserError: no widths, or rows that do not fit the steps.
    """
    widths = _check_rows(snr, timesteps)
    forward = forward_snr(alphas_cumprod, timesteps)
    chosen = torch.full((len(timesteps),), widths[-1])
    for bits in reversed(widths):
        chosen[snr[bits].double() > forward] = bits
    return BitSchedule(tuple(timesteps.tolist()), tuple(chosen.tolist()), weight_bits)


def budget_schedule(
    error_variance: Mapping[int, Tensor],
    coefficients: Sequence[float],
    timesteps: Tensor,
    mean_bits: float,
    weight_bits: int = 4,
) -> BitSchedule:
    """An extension of ours: the least total error that reaches the samples, at a bound on the mean of bits.

    Minimises `sum_t c_t^2 * Var(error_b,t)` by the greedy rule of the knapsack: it always takes the widening that buys
    most per bit, over any number of widths at once.

    Args:
        error_variance: bits of the activations -> variance of the error (S,).
        coefficients: (S,), `prediction_coefficient` of each step.
        mean_bits: the bound; bit operations are proportional to it.

    Raises:
        UserError: rows that do not fit, or a bound below the smallest width.
    """
    widths = _check_rows(error_variance, timesteps)
    if len(coefficients) != len(timesteps):
        raise UserError(f"{len(coefficients)} coefficients for {len(timesteps)} steps")
    if mean_bits < widths[0]:
        raise UserError(f"a mean of {mean_bits} bits is below the smallest width, {widths[0]}")
    costs = {
        bits: [float(v) * c**2 for v, c in zip(error_variance[bits], coefficients, strict=True)] for bits in widths
    }
    chosen, left = [widths[0]] * len(timesteps), (mean_bits - widths[0]) * len(timesteps) + 1e-9
    while True:
        steps = [
            ((costs[chosen[i]][i] - costs[bits][i]) / (bits - chosen[i]), i, bits)
            for i in range(len(chosen))
            for bits in widths
            if 0 < bits - chosen[i] <= left
        ]
        gain, i, bits = max(steps, default=(0.0, 0, 0))
        if gain <= 0:
            return BitSchedule(tuple(timesteps.tolist()), tuple(chosen), weight_bits)
        left -= bits - chosen[i]
        chosen[i] = bits


def _check_rows(rows: Mapping[int, Tensor], timesteps: Tensor) -> list[int]:
    """The widths, ascending."""
    if not rows:
        raise UserError("a bit schedule needs at least one bit width to choose from")
    for bits, values in rows.items():
        if values.shape != timesteps.shape:
            raise UserError(f"{bits} bits: {tuple(values.shape)} values for {len(timesteps)} steps")
    return sorted(rows)
