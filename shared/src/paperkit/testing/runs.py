"""Two run folders compared file by file, times aside: what a run that was killed and resumed owes to one that was not.

Everything that a run leaves must be the same: config, metrics, curves, logs, weights, optimiser states, figures. Only
what tells the time or the place is left out: wall times, the command, the marks `started` and `finished`, `env.json`,
and the paths of the folders themselves.
"""

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from paperkit.files.weights import read_checkpoint

NOT_OF_THE_RESULT = ("started", "finished", ".lock", "env.json", "*.log", "hparams.yaml")
TIMES = re.compile(
    r"(^|[_/. ])(seconds?|times?|timings?|timestamp|wall|eta|duration|command|elapsed|milliseconds|memory)($|[_/. ])",
    re.I,
)
"""Names of numbers that no second run repeats."""
STAMP = re.compile(r"\d{8}[-_]\d{6}")
Content = Any


def check_same_runs(first: Path, second: Path, ignore: Sequence[str] = ()) -> None:
    """AssertionError with the first differences of two run folders.

    Args:
        ignore: names or paths in the run (with `*`) to leave out, for example "figures/latency.png".
    """
    found = differences(first, second, ignore)
    assert not found, f"{first} and {second} differ:\n" + "\n".join(found[:20])


def differences(first: Path, second: Path, ignore: Sequence[str] = ()) -> list[str]:
    """One line for each file of two run folders that differs, times aside."""
    ours, theirs = _files(first, ignore), _files(second, ignore)
    lines = [f"{name}: only in {first}" for name in sorted(ours.keys() - theirs.keys())]
    lines += [f"{name}: only in {second}" for name in sorted(theirs.keys() - ours.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        if [p.read_bytes() for p in ours[name]] == [p.read_bytes() for p in theirs[name]]:
            continue
        where = difference(_content(ours[name], first), _content(theirs[name], second))
        if where:
            lines.append(f"{name}: {where}")
    return lines


def difference(first: Content, second: Content, at: str = "") -> str:
    """The first place where two contents differ, times aside; the empty string where they do not."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            shapes = f"{first.dtype} {tuple(first.shape)} and {second.dtype} {tuple(second.shape)}"
            return f"{at or 'it'} is {shapes}"
        if torch.equal(first, second) or torch.equal(first.isnan() | (first == second), torch.ones_like(first) > 0):
            return ""
        return f"{at or 'it'} differs in {int((first != second).sum())} of {first.numel()} numbers"
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = [k for k in {**first, **second} if not _is_time(k, first.get(k, second.get(k)))]
        for key in keys:
            if key not in first or key not in second:
                return f"{at}.{key}".lstrip(".") + f" is only in the {'second' if key in second else 'first'}"
            if found := difference(first[key], second[key], f"{at}.{key}".lstrip(".")):
                return found
        return ""
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if len(first) != len(second):
            return f"{at or 'it'} has {len(first)} entries and {len(second)}"
        lines = (difference(a, b, f"{at}[{i}]") for i, (a, b) in enumerate(zip(first, second, strict=True)))
        return next((line for line in lines if line), "")
    same = first == second or (isinstance(first, float) and first != first and second != second)
    return "" if same else f"{at or 'it'} is {_short(first)} and {_short(second)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _files(run: Path, ignore: Sequence[str]) -> dict[str, list[Path]]:
    """The files of a run by their names in it; a log of several parts (one for each start) is one file of several."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = STAMP.sub("TIME", path.relative_to(run).as_posix())
        if path.name.startswith("events.out.tfevents"):
            name = f"{Path(name).parent.as_posix()}/events.out.tfevents"
        if any(fnmatch(name, p) or fnmatch(path.name, p) for p in (*NOT_OF_THE_RESULT, *ignore)):
            continue
        found[name].append(path)
    return dict(found)


def _content(paths: Iterable[Path], run: Path) -> Content:
    """What files of one name hold, without the place of the run."""
    paths = list(paths)
    first = paths[0]
    if first.name.startswith("events.out.tfevents"):
        return _curves(paths)
    if first.suffix in (".ckpt", ".pth", ".pt", ".safetensors"):
        return [_placeless(read_checkpoint(path, trust_pickle=first.suffix == ".pth"), run) for path in paths]
    if first.suffix == ".csv":
        return [_timeless_rows(path) for path in paths]
    texts = [path.read_bytes().decode("utf-8", errors="surrogateescape") for path in paths]
    if first.suffix == ".json":
        try:
            return _placeless([_unmeasured(json.loads(text)) for text in texts], run)
        except ValueError:  # one JSON object a line, as mmengine logs: the same set, in whatever files
            lines = [_without_times(json.loads(line)) for text in texts for line in text.splitlines() if line.strip()]
            return sorted({json.dumps(line, sort_keys=True) for line in lines})
    if first.suffix in (".yaml", ".yml"):
        return _placeless([yaml.safe_load(text) for text in texts], run)
    return _placeless(texts, run)


def _unmeasured(content: Content) -> Content:
    """`metrics.json` without the rows that are times."""
    if isinstance(content, dict) and isinstance(content.get("rows"), list):
        rows = [row for row in content["rows"] if not (isinstance(row, dict) and row.get("unit") in ("s", "ms", "MiB"))]
        return {**content, "rows": rows}
    return content


def _is_time(key: object, value: Content) -> bool:
    """Whether a name says that its value is a time; a tensor never is, whatever its name."""
    return isinstance(key, str) and TIMES.search(key) is not None and not _holds_tensor(value)


def _holds_tensor(value: Content) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensor, value.values()))
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensor, value)))


def _without_times(content: Content) -> Content:
    if isinstance(content, Mapping):
        return {k: _without_times(v) for k, v in content.items() if not _is_time(k, v)}
    return content


def _timeless_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [_without_times(row) for row in csv.DictReader(file)]


def _placeless(content: Content, run: Path) -> Content:
    """The content with the run's path replaced wherever it stands in a text or a key."""
    if isinstance(content, str):
        for place in (str(run.resolve()), str(run.absolute()), str(run)):
            content = content.replace(place, "RUN")
        if run.parent.name and run.name:
            content = re.sub(rf"[\w./-]*{re.escape(run.parent.name)}/{re.escape(run.name)}(?=$|[/'\"])", "RUN", content)
        return content
    if isinstance(content, Mapping):
        return {_placeless(key, run): _placeless(value, run) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_placeless(value, run) for value in content]
    return content


def _curves(paths: Iterable[Path]) -> dict[str, list[tuple[int, float]]]:
    """The scalars of TensorBoard's files by tag, each as (step, value); a step that was done twice counts once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves: dict[str, set[tuple[int, float]]] = defaultdict(set)
    for path in paths:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if not TIMES.search(tag):
                curves[tag] |= {(e.step, e.value if math.isfinite(e.value) else math.inf) for e in events.Scalars(tag)}
    return {tag: sorted(points) for tag, points in curves.items()}
