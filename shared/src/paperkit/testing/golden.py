"""Reference files in tests: each verifies, each altered twin is refused; and stored loss traces.

KINDS, GOLDEN = ..., Path(__file__).parents[1] / "golden"

@each_golden(GOLDEN)
def test_verifies(path): check_verifies(path, KINDS)

@each_golden(GOLDEN, "*.safetensors")
def test_altered_results_fail(path, tmp_path): check_altered_results_fail(path, KINDS, tmp_path)

@each_golden(GOLDEN, "*.safetensors")
def test_unknown_options_are_refused(path, tmp_path): check_unknown_option_is_refused(path, KINDS, tmp_path)
"""

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from paperkit.verification import verify
from paperkit.verification.verify import Kind

TRACE = "loss_trace.json"


def golden_files(folder: Path, pattern: str = "*", but: Sequence[str] = ()) -> list[Path]:
    """The reference files of a folder, without its loss trace.

    Args:
        pattern: names that are meant. but: names that are not, for example "released_*".

    Raises:
        ValueError: if there is none: a test of no file would pass.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(("README", "."))]
    left_out = (TRACE, *but)
    files = [p for p in files if fnmatch(p.name, pattern) and not any(fnmatch(p.name, name) for name in left_out)]
    if not files:
        raise ValueError(f"no reference file {pattern} in {folder}")
    return files


def each_golden(folder: Path, pattern: str = "*", but: Sequence[str] = ()) -> Any:
    """A test with the argument `path` for each of `golden_files`."""
    return pytest.mark.parametrize("path", golden_files(folder, pattern, but), ids=lambda path: path.stem)


def read_golden(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def verified(path: Path, kinds: Mapping[str, Kind]) -> tuple[bool, str]:
    """Whether a file verifies, and what was printed of it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = verify.run([path], kinds)
    return code == 0, printed.getvalue()


def changed(
    path: Path,
    folder: Path,
    *,
    tensors: Mapping[str, Tensor | None] | None = None,
    config: Callable[[Any], object] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A changed copy of a reference file.

    Args:
        folder: where to write it, under its own name.
        tensors: in place of those of the file; None takes one away.
        config: changes the config in place.
        metadata: further strings, over those of the file.
    """
    kept, strings = read_golden(path)
    mixed = {**kept, **(tensors or {})}
    if config is not None:
        content = json.loads(strings["config"])
        config(content)
        strings["config"] = json.dumps(content)
    target = folder / path.name
    save_file(
        {name: value for name, value in mixed.items() if value is not None}, target, {**strings, **(metadata or {})}
    )
    return target


def altered_results(path: Path, most: int = 4, by: float = 0.01) -> Iterator[tuple[str, Tensor]]:
    """Results of a file, each with one entry changed: the first, the last and some between.

    Args:
        by: of a float result, what its largest entry is moved by, relative to it, or to 1 where that is more; integers
            are moved by 1 and truth values turned.
    """
    tensors, _ = read_golden(path)
    results = [name for name, value in tensors.items() if name.startswith(("out.", "grad.")) and value.numel()]
    last = max(len(results) - 1, 1)
    places = sorted({round(i * last / max(most - 1, 1)) for i in range(most)})
    for name in (results[place] for place in places if place < len(results)):
        flat = tensors[name].clone().flatten()
        if flat.dtype == torch.bool:
            flat[-1] = ~flat[-1]
        elif flat.is_floating_point():
            place = flat.abs().nan_to_num(0, 0).argmax()
            flat[place] += by * max(1.0, abs(float(flat[place])))
        else:
            flat[-1] += 1
        yield name, flat.reshape(tensors[name].shape)


def check_verifies(path: Path, kinds: Mapping[str, Kind]) -> None:
    """The file is recomputed and every tensor agrees."""
    good, printed = verified(path, kinds)
    assert good, printed


def check_altered_results_fail(
    path: Path, kinds: Mapping[str, Kind], folder: Path, most: int = 4, by: float = 0.01
) -> None:
    """Each of the file's altered twins is refused, with a line on the altered tensor; a file without results fails.

    Args:
        folder: where to write the twins.
        most, by: see `altered_results`.
    """
    twins = list(altered_results(path, most, by))
    assert twins, f"{path} holds no result: no out.* or grad.* tensor"
    for name, value in twins:
        good, printed = verified(changed(path, folder, tensors={name: value}), kinds)
        assert not good and f"FAIL  {name}  " in printed, f"{name} was altered:\n{printed}"


def check_unknown_option_is_refused(path: Path, kinds: Mapping[str, Kind], folder: Path) -> None:
    """An option that no kind knows is named: the file may ask for what is not computed."""
    good, printed = verified(changed(path, folder, config=lambda config: config.update(surprise=1)), kinds)
    assert not good and "surprise" in printed, printed


Losses = Iterable[float]


def check_losses(found: Losses | Mapping[str, Losses], trace: Path, rtol: float = 1e-4) -> None:
    """Losses are those of a stored trace: a list, or one list for each name. Another number is another computation."""
    stored = json.loads(trace.read_text())
    if isinstance(stored, dict):
        assert isinstance(found, Mapping) and found.keys() == stored.keys(), f"{sorted(found)} and {sorted(stored)}"
        pairs = {name: (list(found[name]), stored[name]) for name in stored}
    else:
        assert not isinstance(found, Mapping)
        pairs = {"": (list(found), stored)}
    for name, (ours, theirs) in pairs.items():
        assert theirs and ours == pytest.approx(theirs, rel=rtol), name
