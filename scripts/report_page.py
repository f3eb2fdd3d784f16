"""The page of `make demo`: one HTML file with every paper's claims, table and figures inside, and no other file.

Each paper comes in as an Outcome; nothing here runs or reads anything but the figures of its run folder.
"""

import base64
import html
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

STATES = {"ok": "ran", "failed": "failed", "waiting": "not run"}


@dataclass
class Outcome:
    """One paper: its state (a key of STATES), why it failed, and what its run left."""

    paper: str
    description: str
    state: str = "waiting"
    reason: str = ""
    tail: str = ""
    seconds: float = 0.0
    run: Path | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: #1a1a1a; background: #fff;
       max-width: 62rem; margin: 2rem auto 4rem; padding: 0 1.25rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.4rem; margin: 3rem 0 .25rem; padding-top: 1rem; border-top: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .4rem 0; } a { color: #0b57a4; }
.note { color: #555; font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid #e6e6e6; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; } thead th { border-bottom: 2px solid #999; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.first { font-weight: 600; }
ul.claims { list-style: none; padding: 0; margin: .5rem 0; } ul.claims li { margin: .4rem 0; }
.tag { display: inline-block; font-size: .8rem; font-weight: 600; padding: .05rem .5rem; border-radius: .25rem;
       border: 1px solid currentColor; margin-right: .4rem; white-space: nowrap; }
.good { color: #14692f; } .bad { color: #b3201a; } .open { color: #555; }
figure { margin: 1rem 0 1.5rem; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .85rem; }
pre { background: #f6f6f6; border-left: 3px solid #b3201a; padding: .7rem 1rem; overflow-x: auto; font-size: .8rem; }
code { font-size: .9em; } details { margin: .8rem 0; } summary { cursor: pointer; }
"""
HELD = {True: ("held", "good"), False: ("not held", "bad"), None: ("not tested", "open")}
CLASS = {"ok": "good", "failed": "bad", "waiting": "open"}


def number(value: float | None) -> str:
    """Four significant digits; whole numbers in full; what is not finite (null in JSON) as n/a."""
    if value is None:
        return "n/a"
    if float(value).is_integer() and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def page(outcomes: list[Outcome], root: Path) -> str:
    """The whole HTML page."""
    claims = [claim for outcome in outcomes for claim in outcome.metrics.get("claims", []) if claim["asserted"]]
    count = {state: sum(outcome.state == state for outcome in outcomes) for state in STATES}
    done = f"{count['ok']} of {len(outcomes)} papers ran"
    done += "".join(f", {count[state]} {STATES[state]}" for state in ("failed", "waiting") if count[state])
    held = sum(claim["held"] is True for claim in claims)
    summary = "".join(summary_row(outcome) for outcome in outcomes)
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Embedded experiments</title><style>{CSS}</style></head><body>\n"
        f"<h1>Embedded experiments</h1>\n<p>{done}; {held} of {len(claims)} asserted claims held.</p>\n"
        "<p>Each paper's method beside its baselines under equal budgets, in miniature, on data that ships with the "
        "libraries. Asserted claims are checked by the tests; reported ones are printed as they came out.</p>\n"
        f'<p class="note">Written {time.strftime("%Y-%m-%d %H:%M")} by <code>make demo</code>.</p>\n'
        '<div class="scroll"><table><thead><tr><th>paper</th><th>result</th><th class="n">asserted claims held</th>'
        '<th class="n">reported claims held</th><th class="n">minutes</th></tr></thead><tbody>\n'
        f"{summary}</tbody></table></div>\n"
        + "".join(section(outcome, root) for outcome in outcomes)
        + "</body></html>\n"
    )


def summary_row(outcome: Outcome) -> str:
    cells = []
    for asserted in (True, False):
        claims = [claim for claim in outcome.metrics.get("claims", []) if bool(claim["asserted"]) is asserted]
        cells.append(f"{sum(claim['held'] is True for claim in claims)} of {len(claims)}" if claims else "")
    minutes = f"{outcome.seconds / 60:.1f}" if outcome.seconds else ""
    return (
        f'<tr><td><a href="#{outcome.paper}">{outcome.paper}</a></td>'
        f'<td class="{CLASS[outcome.state]}">{STATES[outcome.state]}</td>'
        + "".join(f'<td class="n">{cell}</td>' for cell in (*cells, minutes))
        + "</tr>\n"
    )


def section(outcome: Outcome, root: Path) -> str:
    """One paper's part of the page."""
    name = html.escape(outcome.paper)
    head = f'<section id="{name}"><h2>{name}</h2>\n<p>{html.escape(outcome.description)}</p>\n'
    if outcome.state == "waiting":
        return head + '<p class="open">Not run.</p></section>\n'
    if outcome.state == "failed":
        last = f"<p>The last lines of its output:</p><pre>{html.escape(outcome.tail)}</pre>" if outcome.tail else ""
        return head + f'<p class="bad"><b>Failed:</b> {html.escape(outcome.reason)}</p>{last}</section>\n'
    assert outcome.run
    figures = "".join(figure(path, root) for path in sorted((outcome.run / "figures").glob("*.png")))
    return (
        head
        + claim_list(outcome.metrics["claims"])
        + row_table(outcome.metrics)
        + figures
        + about(outcome, root)
        + "</section>\n"
    )


def claim_list(claims: list[dict[str, Any]]) -> str:
    items = ""
    for claim in claims:
        word, look = HELD[claim["held"]]
        detail = f' <span class="note">({html.escape(claim["detail"])})</span>' if claim["detail"] else ""
        kind = "asserted" if claim["asserted"] else "reported"
        items += f'<li><span class="tag {look}">{word}</span><span class="tag open">{kind}</span>'
        items += f"{html.escape(claim['text'])}{detail}</li>\n"
    return f'<h3>Claims</h3><ul class="claims">\n{items}</ul>\n' if items else ""


def row_table(metrics: dict[str, Any]) -> str:
    """Arms and metrics, with a column per seed; an arm is named once for the rows that follow each other."""
    rows, seeds = metrics["rows"], metrics["seeds"]
    if not rows:
        return ""
    columns = max(
        len(seeds) if len(seeds) > 1 else 0, *(len(row["values"]) if len(row["values"]) > 1 else 0 for row in rows)
    )
    head = "".join(f'<th class="n">seed {seeds[i] if i < len(seeds) else "?"}</th>' for i in range(columns))
    body, last = "", None
    for row in rows:
        values = [number(value) for value in row["values"]] if len(row["values"]) > 1 else []
        values += [""] * (columns - len(values))
        spread = number(row["spread"]) if len(row["values"]) > 1 else ""
        body += f'<tr><td class="first">{html.escape(row["arm"]) if row["arm"] != last else ""}</td>'
        body += (
            f'<td>{html.escape(row["metric"])}</td><td class="n">{number(row["mean"])}</td><td class="n">{spread}</td>'
        )
        body += (
            f"<td>{html.escape(row['unit'])}</td>"
            + "".join(f'<td class="n">{value}</td>' for value in values)
            + "</tr>\n"
        )
        last = row["arm"]
    return (
        '<h3>Results</h3><div class="scroll"><table><thead><tr><th>arm</th><th>metric</th><th class="n">mean</th>'
        f'<th class="n">spread</th><th>unit</th>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'
    )


def figure(path: Path, root: Path) -> str:
    place = html.escape(path.relative_to(root).as_posix())
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return f'<p class="bad">{place} is not a PNG file.</p>\n'
    alt = html.escape(png_title(content) or path.stem.replace("_", " "))
    data = base64.b64encode(content).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt="{alt}">\n<figcaption>{place}</figcaption></figure>\n'


def png_title(content: bytes) -> str:
    """The title that paperkit.results.report.save_figure stores in a PNG, or the empty string."""
    at = 8
    while at + 12 <= len(content):
        size, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        key, _, value = content[at + 8 : at + 8 + size].partition(b"\0")
        if key == b"Title" and kind == b"tEXt":
            return value.decode("latin-1")
        if key == b"Title" and kind == b"iTXt" and value[:1] == b"\0":  # not compressed
            return value[2:].split(b"\0", 2)[-1].decode(errors="replace")
        at += size + 12
    return ""


def about(outcome: Outcome, root: Path) -> str:
    """Where the figures come from: commands, seconds, threads, processor, commit, versions."""
    metrics, environment = outcome.metrics, outcome.environment
    assert outcome.run
    cpu = environment.get("cpu") if isinstance(environment.get("cpu"), dict) else {}
    place = outcome.run.relative_to(root).as_posix()
    facts = {
        "run": f'<a href="{quote(place)}">{html.escape(place)}</a>',
        "commands": f"<code>make {outcome.paper}-train</code>, <code>make {outcome.paper}-eval</code>",
        "seconds": f"{metrics['seconds']:.1f} (as the run counts), {outcome.seconds:.1f} for both commands",
        "seeds": html.escape(", ".join(map(str, metrics["seeds"]))),
        "threads": html.escape(str(metrics["threads"])),
        "processor": html.escape(f"{cpu.get('model', '')}, {cpu.get('cores', '?')} cores" if cpu else ""),
        "commit": html.escape(str(environment.get("commit") or "")),
        "versions": html.escape(", ".join(f"{key} {value}" for key, value in metrics["versions"].items())),
    }
    rows = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>\n" for key, value in facts.items() if value)
    return f"<details open><summary>How it was run</summary><table><tbody>\n{rows}</tbody></table></details>\n"
