"""The page of `make demo`: one HTML file with every paper's claims, table and figures inside, and no other file.

Each paper comes in as an Outcome; nothing here runs or reads anything but the figures of its run folder. The page
itself is `report_page.html.jinja`.
"""

import base64
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image, UnidentifiedImageError

from paperkit.results.metrics import Claim, Metrics

STATES = {"ok": "ran", "failed": "failed", "waiting": "not run"}
LOOKS = {"ok": "good", "failed": "bad", "waiting": "open"}


@dataclass
class Outcome:
    """One paper: its state (a key of STATES), why it failed, and what its run left (metrics if it is ok)."""

    paper: str
    description: str
    state: str = "waiting"
    reason: str = ""
    tail: str = ""
    seconds: float = 0.0
    run: Path | None = None
    metrics: Metrics | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def claims(self) -> list[Claim]:
        return self.metrics.claims if self.metrics else []

    @property
    def value_columns(self) -> int:
        """Columns for single values: one per seed, or as many as the longest row has; none where each has one."""
        assert self.metrics
        counts = [len(self.metrics.seeds), *(len(row.values) for row in self.metrics.rows)]
        return max(n if n > 1 else 0 for n in counts)

    def figures(self, root: Path) -> Iterator[dict[str, str]]:
        """Place, title and base64 data of each figure; no data where a file is no PNG."""
        assert self.run
        for path in sorted((self.run / "figures").glob("*.png")):
            place = path.relative_to(root).as_posix()
            try:
                with Image.open(path, formats=["png"]) as image:
                    title = image.info.get("Title") or path.stem.replace("_", " ")  # save_figure stores it
            except UnidentifiedImageError:
                yield {"place": place}
            else:
                yield {"place": place, "title": title, "data": base64.b64encode(path.read_bytes()).decode()}


def number(value: float | None) -> str:
    """Four significant digits; whole numbers in full; what is not finite as n/a."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if float(value).is_integer() and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def versions(metrics: Metrics) -> str:
    return ", ".join(f"{key} {value}" for key, value in metrics.versions.items())


def page(outcomes: list[Outcome], root: Path) -> str:
    """The whole HTML page."""
    asserted = [claim for outcome in outcomes for claim in outcome.claims if claim.asserted]
    count = {state: sum(outcome.state == state for outcome in outcomes) for state in STATES}
    done = f"{count['ok']} of {len(outcomes)} papers ran"
    done += "".join(f", {count[state]} {STATES[state]}" for state in ("failed", "waiting") if count[state])
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["number"] = number
    return environment.get_template("report_page.html.jinja").render(
        outcomes=outcomes,
        root=root,
        done=done,
        held=sum(claim.held is True for claim in asserted),
        asserted=len(asserted),
        now=time.strftime("%Y-%m-%d %H:%M"),
        states=STATES,
        looks=LOOKS,
        versions=versions,
    )
