"""Reference files recomputed and compared: the mechanism behind `<paper> verify FILE...`.

A paper gives one `Kind` per rule of its reference files; comparing, one line per tensor and per fault, and
the exit code are here, reading is in `paperkit.verification.reference_file`.
"""

import math
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperkit.errors import UserError, one_line
from paperkit.files.weights import Allowed
from paperkit.verification.bounds import MOST_PARAMETERS, at_most, check_sizes
from paperkit.verification.reference_file import ReferenceFile

_ABSENT = object()


@dataclass(frozen=True)
class Tolerance:
    """`|computed - reference| <= absolute + relative * max(largest |reference| of the tensor, floor)`."""

    relative: float
    absolute: float = 0.0
    floor: float = 0.0


@dataclass(frozen=True)
class Check:
    """A kind's own comparison in place of a tensor (residual, share of flipped codes): passes if error <= tolerance."""

    error: float
    tolerance: float
    note: str = ""


@dataclass(frozen=True)
class Kind:
    """How one kind of reference file is recomputed.

    Args:
        compute: file -> computed values, keyed as in the file: `out.x` and `grad.x` tensors, `config.<path>`
            for results that stand in the config. A `Check` may stand for any of them, or under a name of its
            own. A `set` compares a config list without its order.
        tolerance: for float tensors; a number is relative to the largest absolute reference value of the tensor. A
            callable gets (file, key). Integer and bool tensors, and all in the config but floats, must be equal.
        results: config keys that are results, as dotted paths with `*` for every entry of a list or dict
            (`"configs"`, `"plain.*.pairs"`, `"*"`). Each one the file holds must be computed.
        options: allowed top-level config keys besides the results (None: the kind checks names and sizes itself).
        requires: names the file must hold, with fnmatch wildcards (`"in.x"`, `"sd.*"`, `"config.configs"`).
        config_tolerance: relative tolerance of each float in config results.
        limits: largest whole numbers among the options, by dotted path, where `bounds.check_sizes`'s own is too small
            or leaves too much work.
        parameters: tensors that the work may build beyond those of the file; more where names alone stand for networks.
        allow: classes that a `.pth` file may hold, see `paperkit.files.weights.read_checkpoint`.
    """

    compute: Callable[[ReferenceFile], Mapping[str, Any]]
    tolerance: float | Tolerance | Callable[[ReferenceFile, str], float | Tolerance]
    results: tuple[str, ...] = ()
    options: Iterable[str] | None = None
    requires: tuple[str, ...] = ()
    config_tolerance: float = 0.0
    limits: Mapping[str, int] = field(default_factory=dict)
    parameters: int = MOST_PARAMETERS
    allow: tuple[Allowed, ...] = ()

    def tolerance_of(self, file: ReferenceFile, key: str) -> Tolerance:
        """The tolerance of one float tensor."""
        found = self.tolerance(file, key) if callable(self.tolerance) else self.tolerance
        return found if isinstance(found, Tolerance) else Tolerance(float(found))


def check_options(config: Mapping[str, Any], allowed: Iterable[str], where: str = "config") -> None:
    """Raises a UserError that names the first key of `config` that is not allowed; for nested option dicts."""
    allowed = set(allowed)
    for key in config:
        if key not in allowed:
            raise UserError(f"unknown option {key!r} in {where}; known: {', '.join(sorted(allowed)) or 'none'}")


def run(files: Iterable[str | Path], kinds: Mapping[str, Kind], rtol: float | None = None) -> int:
    """Verifies files (a folder stands for the files in it, README excepted), printing one line per tensor.

    Args:
        rtol: replaces the relative part of every kind's tolerance; Checks, integers and non-floats keep theirs.

    Returns:
        The exit code: 0 if every file was read and every tensor agreed, else 1.
    """
    passed = total = count = failed = 0
    for path, fault in _expand(files):
        count += 1
        outcomes, fault = ([], fault) if fault else _verify(path, kinds, rtol)
        passed, total = passed + sum(outcomes), total + len(outcomes)
        failed += bool(fault) or not all(outcomes)
        if fault:
            print(f"FAIL {path}: {fault}", flush=True)
    bad = f", {failed} {'file' if failed == 1 else 'files'} failed" if failed else ""
    print(f"verified: {passed} of {total} tensors in {count} {'file' if count == 1 else 'files'}{bad}", flush=True)
    return 1 if failed or not count else 0


def _one_line(error: BaseException) -> str:
    text = one_line(str(error))
    text = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= 300 else text[:297] + "..."


def _expand(files: Iterable[str | Path]) -> Iterator[tuple[Path, str]]:
    """Yields (path, fault): the files, folders opened up (not recursively)."""
    for path in map(Path, files):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(("README", ".")))
            yield from ((p, "") for p in inside)
            if not inside:
                yield path, "a folder without reference files"
        else:
            yield path, "" if path.exists() else "no such file"


def _verify(path: Path, kinds: Mapping[str, Kind], rtol: float | None) -> tuple[list[bool], str]:
    """One file: prints its lines; returns passed or not per compared item, and the fault of the file if any."""
    outcomes: list[bool] = []
    wanted: list[str] = []
    try:
        file = ReferenceFile.read(path, kinds, [allowed for kind in kinds.values() for allowed in kind.allow])
        kind = kinds[file.kind]
        wanted = [name for name in file.tensors if name.startswith(("out.", "grad."))]
        print(f"{path} ({file.kind}{': ' if file.describes else ''}{file.describes})", flush=True)
        _check_content(file, kind)
        with at_most(file.tensors.values(), kind.parameters):
            computed = kind.compute(file)
        for key, good, text in _compare(file, kind, computed, wanted, rtol):
            outcomes.append(good)
            print(f"  {'pass' if good else 'FAIL'}  {key}  {text}", flush=True)
        return outcomes, "" if outcomes else "nothing to compare: no out.* or grad.* tensor and no result in the config"
    except Exception as error:  # whatever a strange file provokes is one line; the other files go on
        if os.environ.get("PAPERKIT_TRACEBACK"):
            traceback.print_exc()
        return outcomes + [False] * (len(wanted) - len(outcomes)), _one_line(error)


def _check_content(file: ReferenceFile, kind: Kind) -> None:
    if kind.options is not None:
        check_options(file.config, {*kind.options, *(path.split(".")[0] for path in kind.results), "kind"})
    if kind.options is not None or kind.limits:
        check_sizes(file.config, kind.limits, kind.results)
    names = [*file.tensors, *(f"config.{key}" for key in file.config)]
    for pattern in kind.requires:
        if not any(fnmatch(name, pattern) for name in names):
            raise UserError(f"missing {pattern if pattern.startswith('config.') else f'tensor {pattern}'}")


def _compare(
    file: ReferenceFile, kind: Kind, computed: Mapping[str, Any], wanted: Sequence[str], rtol: float | None
) -> Iterator[tuple[str, bool, str]]:
    """Yields (key, passed, text) for every tensor, every result of the config and every further Check."""
    for key in wanted:
        value = computed.get(key, _ABSENT)
        if value is _ABSENT:
            yield key, False, "not computed"
        elif isinstance(value, Check):
            yield key, *_judge(value)
        else:
            yield key, *_compare_tensor(torch.as_tensor(value), file.tensors[key], kind.tolerance_of(file, key), rtol)
    paths = [path for pattern in kind.results for path in _paths(file.config, pattern.split("."))]
    used: set[str] = set()
    for path in dict.fromkeys(paths):
        key, value = _find(computed, path)
        used.add(key)
        yield f"config.{'.'.join(path)}", *_compare_result(value, _walk(file.config, path), kind, rtol)
    for key, value in computed.items():
        path = tuple(key.split(".")[1:])
        if isinstance(value, Check) and key not in wanted and key not in used:
            yield key, *_judge(value)
        elif key.startswith("config.") and key not in used and (found := _walk(file.config, path)) is not _ABSENT:
            yield key, *_compare_result(value, found, kind, rtol)


def _judge(check: Check) -> tuple[bool, str]:
    note = f"  ({check.note})" if check.note else ""
    return check.error <= check.tolerance, f"error {check.error:.3g}  tolerance {check.tolerance:.3g}{note}"


def _compare_tensor(computed: Tensor, reference: Tensor, tolerance: Tolerance, rtol: float | None) -> tuple[bool, str]:
    """Largest absolute error, that error relative to the largest reference value, and the verdict."""
    computed = computed.detach().cpu()
    if computed.shape != reference.shape:
        return False, f"shape {tuple(computed.shape)} computed, {tuple(reference.shape)} in the file"
    inexact = reference.is_floating_point() or reference.is_complex()
    if not inexact:
        tolerance = Tolerance(0.0)
    elif rtol is not None:
        tolerance = Tolerance(rtol, tolerance.absolute, tolerance.floor)
    if computed.is_complex() or reference.is_complex():
        wide = torch.complex128
    else:
        wide = torch.float64 if inexact or computed.is_floating_point() else torch.int64
    computed, reference = computed.to(wide), reference.to(wide)
    for name, t in (("computed", computed), ("reference", reference)):
        if t.isnan().any():
            return False, f"{name} holds {int(t.isnan().sum())} NaN of {t.numel()}"
    # Equal infinities agree, although their difference is NaN.
    error = torch.where(computed == reference, 0, (computed - reference).abs()).max().item() if computed.numel() else 0
    finite = reference[reference.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0
    relative = error / largest if largest else (0.0 if error == 0 else math.inf)
    allowed = tolerance.absolute + tolerance.relative * max(largest, tolerance.floor)
    bound = f"tolerance {tolerance.relative:.3g}" if allowed else "exact"
    bound += f" + {tolerance.absolute:.3g}" if tolerance.absolute else ""
    bound += f" (of at least {tolerance.floor:.3g})" if tolerance.floor > largest else ""
    return error <= allowed, f"abs {error:.3g}  rel {relative:.3g}  {bound}"


def _paths(value: Any, pattern: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Paths of `value` that a dotted pattern with `*` names."""
    if not pattern:
        yield ()
        return
    entries = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
    for key, inner in entries.items():
        if pattern[0] in ("*", str(key)):
            yield from ((str(key), *rest) for rest in _paths(inner, pattern[1:]))


def _walk(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, (list, tuple)) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return _ABSENT
    return value


def _find(computed: Mapping[str, Any], path: Sequence[str]) -> tuple[str, Any]:
    """The computed value of a config path: under its own key, or inside the value of the nearest parent's key."""
    for length in range(len(path), 0, -1):
        key = "config." + ".".join(path[:length])
        if key in computed:
            return key, computed[key] if isinstance(computed[key], Check) else _walk(computed[key], path[length:])
    return "", _ABSENT


def _compare_result(computed: Any, reference: Any, kind: Kind, rtol: float | None) -> tuple[bool, str]:
    if computed is _ABSENT:
        return False, "not computed"
    if isinstance(computed, Check):
        return _judge(computed)
    tolerance = kind.config_tolerance if rtol is None else rtol
    fault = _difference(computed, reference, tolerance, "")
    return not fault, fault or f"equal{f' (floats to {tolerance:.3g})' if tolerance else ''}"


def _difference(computed: Any, reference: Any, tolerance: float, at: str) -> str:
    """The first place where two JSON-like values differ, or the empty string."""
    if hasattr(computed, "tolist"):  # tensors, numpy arrays and scalars
        computed = computed.tolist()
    place = f" at {at}" if at else ""
    if isinstance(computed, (set, frozenset)) and isinstance(reference, list):
        odd = computed.symmetric_difference(reference)
        if not odd and len(computed) != len(reference):
            return f"{len(computed)} entries computed, {len(reference)} in the file{place}"
        return f"differs in {sorted(map(str, odd))[:3]}{place}" if odd else ""
    if isinstance(computed, Mapping) and isinstance(reference, dict):
        computed = {str(key): value for key, value in computed.items()}
        if odd := computed.keys() ^ reference.keys():
            return f"keys differ in {sorted(odd)[:3]}{place}"
        pairs = [(f"{at}.{key}".lstrip("."), computed[key], reference[key]) for key in reference]
    elif isinstance(computed, (list, tuple)) and isinstance(reference, list):
        if len(computed) != len(reference):
            return f"{len(computed)} entries computed, {len(reference)} in the file{place}"
        pairs = [(f"{at}[{i}]", a, b) for i, (a, b) in enumerate(zip(computed, reference, strict=True))]
    else:
        same = computed == reference and isinstance(computed, bool) == isinstance(reference, bool)
        floats = {type(computed), type(reference)} in ({float}, {float, int})
        if same or (floats and math.isclose(computed, reference, rel_tol=tolerance)):
            return ""
        return f"{repr(computed)[:60]} computed, {repr(reference)[:60]} in the file{place}"
    return next((fault for where, a, b in pairs if (fault := _difference(a, b, tolerance, where))), "")
