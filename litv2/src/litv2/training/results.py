"""What evaluation on real data prints, and writes into metrics.json."""

from collections.abc import Mapping
from pathlib import Path

from paperkit.results.record import record, told


def report(folder: Path, arm: str, title: str, found: Mapping[str, float], seed: int, seconds: float) -> None:
    """Print what an evaluation found, and record it."""
    told(title, found)
    record(folder, "litv2", arm, found, seed, seconds)
    print(folder / "metrics.json")
