"""Statistics of the quantisation noise at each time step, by streaming sums in float64 (section 6 of the method).

The error `eps_q - eps` of a guided noise prediction is split into a part proportional to `eps` (slope `k`), a mean for
each channel, and what is left. No pair of predictions is kept: each step has sums for each channel, and three numbers
for each sample, from which the spread of the residual follows exactly once the slope is known.

Shapes: S sampled steps, B batch, C channels, M samples over all steps.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.bounded import parse_json
from paperkit.files.weights import check_finite, read_safetensors, save_weights

ROWS = ("timesteps", "k", "r", "bias", "residual_std", "snr", "mean", "count")
"""Tensors of a file; `mean` may be missing."""


@dataclass(frozen=True)
class NoiseStatistics:
    """What was found, in rows of ascending time step, float64; it belongs to one model, bit width and sampler.

    Args:
        timesteps: (S,), int64.
        k: (S,), slope of the least-squares line `error = k * eps + intercept`, signed.
        r: (S,), the correlation of error and prediction.
        bias: (S, C), mean of the raw error.
        residual_std: (S,), standard deviation of `error - relu(k) * eps` within a sample, averaged over the samples.
        snr: (S,), sum of `eps^2` over sum of `error^2`.
        mean: (S, C), of `eps`; None in statistics of the authors' files. Only corrections of ours need it.
        count: (S,), samples of each step; empty where it is unknown.
        identity: what they belong to: model, bits, sampler, steps, eta, guidance.
    """

    timesteps: Tensor
    k: Tensor
    r: Tensor
    bias: Tensor
    residual_std: Tensor
    snr: Tensor
    mean: Tensor | None = None
    count: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = self.timesteps.tolist()
        if self.timesteps.dim() != 1 or not steps or sorted(set(steps)) != steps:
            raise UserError(f"noise statistics: time steps {str(steps)[:80]}; they must be ascending, each once")
        rows, channels = len(steps), self.bias.shape[-1] if self.bias.dim() == 2 else -1
        expected = dict.fromkeys(("k", "r", "residual_std", "snr"), (rows,)) | {"bias": (rows, channels)}
        if self.mean is not None:
            expected["mean"] = (rows, channels)
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise UserError(f"noise statistics: {name} is {tuple(getattr(self, name).shape)}; {shape} is needed")
        for name in ("k", "bias", "residual_std"):
            if not getattr(self, name).isfinite().all():
                raise UserError(f"noise statistics: {name} holds NaN or infinite values; collect them again")
        if (self.residual_std < 0).any():
            raise UserError("noise statistics: a spread is negative")

    def row(self, timestep: int) -> int:
        """Where a time step stands.

        Raises:
            UserError: it is none of theirs.
        """
        found = (self.timesteps == timestep).nonzero().flatten().tolist()
        if not found:
            raise UserError(f"noise statistics have no time step {timestep}: {self._told_steps()}")
        return int(found[0])

    def check(self, identity: Mapping[str, Any]) -> None:
        """Refuses to serve for anything but what they were collected for; only what `identity` names is compared.

        Raises:
            UserError: something differs, or is not known of these statistics.
        """
        odd = [key for key, value in identity.items() if key not in self.identity or self.identity[key] != value]
        if odd:
            theirs = ", ".join(f"{key} {self.identity.get(key, 'unknown')}" for key in odd)
            asked = ", ".join(f"{key} {identity[key]}" for key in odd)
            raise UserError(f"noise statistics of {theirs} do not fit {asked}; collect them again")

    def check_timesteps(self, timesteps: Tensor) -> None:
        """Refuses another list of sampled steps.

        Raises:
            UserError: it is another; `interpolated` makes statistics for it.
        """
        asked = sorted(timesteps.tolist())
        if asked != self.timesteps.tolist():
            raise UserError(
                f"noise statistics are of {self._told_steps()}; the sampler takes {len(asked)} ({asked[0]} to "
                f"{asked[-1]}): collect them again, or interpolate"
            )

    def _told_steps(self) -> str:
        return f"{len(self.timesteps)} steps ({int(self.timesteps[0])} to {int(self.timesteps[-1])})"

    def interpolated(self, timesteps: Tensor, alphas_cumprod: Tensor) -> "NoiseStatistics":
        """For other sampled steps: linear in the logarithm of the forward process's SNR, constant beyond the ends.

        An extension of ours. SNR is interpolated in its logarithm as well.

        Args:
            timesteps: any order.
            alphas_cumprod: (T,), of the noise schedule.
        """
        asked = timesteps.cpu().long().sort().values
        place = (alphas_cumprod / (1 - alphas_cumprod)).double().log().cpu()
        have, want = -place[self.timesteps], -place[asked]  # ascending with t
        right = torch.searchsorted(have, want).clamp(1, max(1, len(have) - 1))
        left, right = right - 1, right.clamp(max=len(have) - 1)
        share = ((want - have[left]) / (have[right] - have[left]).clamp(min=1e-30)).clamp(0, 1)

        def rows(values: Tensor) -> Tensor:
            part = share.reshape(-1, *[1] * (values.dim() - 1))
            return values[left] + part * (values[right] - values[left])

        snr = rows(self.snr.clamp(1e-30, 1e30).log()).exp()
        return replace(
            self,
            timesteps=asked,
            k=rows(self.k),
            r=rows(self.r),
            bias=rows(self.bias),
            residual_std=rows(self.residual_std),
            snr=snr,
            mean=None if self.mean is None else rows(self.mean),
            count=torch.zeros(0, dtype=torch.int64),
            identity={**self.identity, "steps": len(asked), "interpolated_from": len(self.timesteps)},
        )

    def save(self, path: str | Path) -> None:
        """Writes them as safetensors, whole or not at all; the identity stands in the metadata."""
        rows = {name: getattr(self, name) for name in ROWS if getattr(self, name) is not None}
        save_weights(path, rows, {"identity": json.dumps(dict(self.identity))})

    @classmethod
    def load(cls, path: str | Path) -> "NoiseStatistics":
        """Reads what `save` wrote.

        Raises:
            UserError: unreadable, or not such a file.
        """
        tensors, metadata = read_safetensors(path)
        if not {*ROWS} - {"mean"} <= tensors.keys() <= {*ROWS} or "identity" not in metadata:
            raise UserError(f"{path} holds {', '.join(sorted(tensors))[:200]}; that is no file of noise statistics")
        check_finite({name: value for name, value in tensors.items() if name != "snr"}, path)
        try:
            identity = parse_json(metadata["identity"])
        except ValueError as error:
            raise UserError(f"{path}: its identity is no JSON") from error
        if not isinstance(identity, dict):
            raise UserError(f"{path}: its identity is no table")
        return cls(**tensors, identity=identity)


@dataclass
class _Sums:
    """Of one step. `channels` (C, 5): sums of eps, error, eps^2, eps * error, error^2; `values` in each channel."""

    channels: Tensor
    values: int
    samples: list[Tensor]
    """Each (B, 3): unbiased variance of error, covariance, variance of eps, over all values of a sample."""


class StatisticsAccumulator:
    """Takes pairs of predictions one batch at a time; `finish` gives their statistics.

    sums = StatisticsAccumulator()
    for t, eps, eps_q in collect_pairs(...):
        sums.add(t, eps, eps_q)
    statistics = sums.finish({"steps": 20, "eta": 0.0})
    """

    def __init__(self) -> None:
        self._steps: dict[int, _Sums] = {}

    def add(self, timestep: int, eps: Tensor, eps_q: Tensor) -> None:
        """Guided predictions (B, C, ...) of the float and the quantised network for the same inputs.

        Raises:
            UserError: shapes that differ, values that are no numbers, or fewer than two values in a sample.
        """
        if eps.shape != eps_q.shape or eps.dim() < 2 or eps[:1].numel() < 2:
            raise UserError(f"predictions of shape {tuple(eps.shape)} and {tuple(eps_q.shape)} are no pair")
        exact = eps.detach().double().flatten(2) if eps.dim() > 2 else eps.detach().double()[:, :, None]
        error = eps_q.detach().double().reshape(exact.shape) - exact
        if not (error.isfinite().all() and exact.isfinite().all()):
            raise UserError(f"time step {timestep}: a prediction holds NaN or infinite values")
        products = torch.stack([exact, error, exact * exact, exact * error, error * error], dim=-1)
        channels = products.sum(dim=(0, 2)).cpu()
        e, d = (part.flatten(1) - part.flatten(1).mean(1, keepdim=True) for part in (exact, error))
        moments = torch.stack([(d * d).sum(1), (e * d).sum(1), (e * e).sum(1)], dim=1) / (e.shape[1] - 1)
        values = exact.shape[0] * exact.shape[2]
        self._join(int(timestep), _Sums(channels, values, [moments.cpu()]))

    def _join(self, timestep: int, new: _Sums) -> None:
        old = self._steps.get(timestep)
        if old is None:
            self._steps[timestep] = new
            return
        if old.channels.shape != new.channels.shape:
            raise UserError(f"time step {timestep}: {len(new.channels)} channels after {len(old.channels)}")
        old.channels = old.channels + new.channels
        old.values += new.values
        old.samples += new.samples

    def state(self) -> dict[str, Tensor]:
        """All sums as tensors: `timesteps`, `channels` (S, C, 5), `values`, `counts` (S,), `samples` (M, 3).

        Raises:
            UserError: nothing was added.
        """
        if not self._steps:
            raise UserError("no pair of predictions was collected")
        steps = sorted(self._steps)
        samples = [torch.cat(self._steps[t].samples) for t in steps]
        return {
            "timesteps": torch.tensor(steps),
            "channels": torch.stack([self._steps[t].channels for t in steps]),
            "values": torch.tensor([self._steps[t].values for t in steps]),
            "counts": torch.tensor([len(one) for one in samples]),
            "samples": torch.cat(samples),
        }

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Adds what `state` of another accumulator gave; the order of merging decides the last bits alone."""
        first = 0
        for row, timestep in enumerate(state["timesteps"].tolist()):
            count = int(state["counts"][row])
            samples = state["samples"][first : first + count].clone()
            self._join(timestep, _Sums(state["channels"][row].clone(), int(state["values"][row]), [samples]))
            first += count

    def finish(self, identity: Mapping[str, Any] | None = None) -> NoiseStatistics:
        """The statistics of everything added.

        Raises:
            UserError: nothing was added.
        """
        state = self.state()
        channels, values = state["channels"], state["values"].double()
        total = values * channels.shape[1]
        eps, error, eps2, cross, error2 = channels.sum(1).unbind(1)
        covariance = cross - eps * error / total
        spread, spread_q = (eps2 - eps**2 / total).clamp(min=0), (error2 - error**2 / total).clamp(min=0)
        k = torch.where(spread > 0, covariance / spread.clamp(min=1e-300), 0.0)
        scale = (spread * spread_q).sqrt()
        r = torch.where(scale > 0, covariance / scale.clamp(min=1e-300), 0.0).clamp(-1, 1)
        slopes = k.clamp(min=0).repeat_interleave(state["counts"])
        var_error, cov, var_eps = state["samples"].unbind(1)
        stds = (var_error - 2 * slopes * cov + slopes**2 * var_eps).clamp(min=0).sqrt()
        residual = torch.stack([part.mean() for part in stds.split(state["counts"].tolist())])
        return NoiseStatistics(
            timesteps=state["timesteps"],
            k=k,
            r=r,
            bias=channels[:, :, 1] / values[:, None],
            residual_std=residual,
            snr=torch.where(error2 > 0, eps2 / error2.clamp(min=1e-300), torch.inf),
            mean=channels[:, :, 0] / values[:, None],
            count=state["counts"],
            identity=dict(identity or {}),
        )
