"""Choosing a configuration by what it may cost, and which configurations are worth choosing from."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paperkit.errors import UserError
from snnet.method.counting import configuration_macs, parameters
from snnet.method.stitching import StitchedNetwork

LATENCIES = "latency.json"  # beside a network's weights, written by `snnet latency`


@dataclass(frozen=True)
class OperatingPoint:
    """One configuration with its costs.

    Attributes:
        flops: multiply-adds per image.
        params: parameters that it needs.
        acc1: validation accuracy in percent, None before any evaluation.
        latency: milliseconds per image (batch of 1) on the machine that measured it, None where not measured.
    """

    config_id: int
    name: str
    flops: int
    params: int
    acc1: float | None = None
    latency: float | None = None


def operating_points(
    network: StitchedNetwork,
    input_size: Sequence[int],
    names: Sequence[str],
    accuracies: Mapping[int, float] | None = None,
    latencies: Mapping[int, float] | None = None,
) -> list[OperatingPoint]:
    """Every configuration of a network.

    Args:
        input_size: (channels, H, W).
        names: of the anchors.
        accuracies, latencies: by id, where they were measured.
    """
    macs, params = configuration_macs(network, input_size), parameters(network)
    return [
        OperatingPoint(i, c.describe(names), macs[i], params[i], (accuracies or {}).get(i), (latencies or {}).get(i))
        for i, c in enumerate(network.configurations)
    ]


def select(
    points: Iterable[OperatingPoint],
    flops: float | None = None,
    params: float | None = None,
    latency: float | None = None,
) -> int:
    """Id of the most accurate configuration within all budgets; of the dearest one where no accuracy is known.

    Nothing is switched: pass the id to `set_stitch`.

    Args:
        flops: multiply-adds per image at most.
        params: parameters at most.
        latency: milliseconds at most.

    Raises:
        UserError: if no configuration meets the budgets (the nearest is named), or latencies were not measured.
    """
    points = list(points)
    budgets = {
        name: limit for name, limit in (("flops", flops), ("params", params), ("latency", latency)) if limit is not None
    }
    if latency is not None and any(point.latency is None for point in points):
        raise UserError("no latencies are known; measure them on this machine with `snnet latency`")
    within = [p for p in points if all(getattr(p, name) <= limit for name, limit in budgets.items())]
    if not within:
        nearest = min(
            points,
            key=lambda p: max(
                getattr(p, name) / limit if limit > 0 else float("inf") for name, limit in budgets.items()
            ),
        )
        costs = ", ".join(f"{name} {getattr(nearest, name):,.6g}" for name in budgets)
        wanted = ", ".join(f"{name} {limit:,.6g}" for name, limit in budgets.items())
        raise UserError(
            f"no configuration meets {wanted}; the nearest is {nearest.config_id} ({nearest.name}: {costs})"
        )
    if any(p.acc1 is None for p in within):
        return max(within, key=lambda p: p.flops).config_id
    return max(within, key=lambda p: (p.acc1 or 0.0, -p.flops)).config_id


def pareto_front(points: Iterable[tuple[int, int, float]]) -> list[int]:
    """Ids that no cheaper (or equally cheap) configuration matches in accuracy, by rising multiply-adds.

    Args:
        points: (id, multiply-adds, accuracy).
    """
    front: list[int] = []
    best = float("-inf")
    for config_id, _, accuracy in sorted(points, key=lambda point: (point[1], -point[2])):
        if accuracy > best:
            front.append(config_id)
            best = accuracy
    return front


def read_latencies(folder: Path | None) -> dict[int, float]:
    """Milliseconds by id that were measured of the network in `folder`; empty if none were."""
    path = None if folder is None else folder / LATENCIES
    if path is None or not path.exists():
        return {}
    try:
        return {int(i): float(value) for i, value in json.loads(path.read_text())["milliseconds"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); measure with `snnet latency`") from None
