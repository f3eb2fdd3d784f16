"""What a stranger's reference file may ask for: bounded numbers, values, levels and parameters; seals are checked."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.weights import save_weights
from paperkit.verification.bounds import LARGEST_NUMBER, at_most, check_sizes
from paperkit.verification.verify import Check, Kind, ReferenceFile, run


def build(file: ReferenceFile) -> dict[str, Any]:
    """As many layers as the config says."""
    layers = [nn.Linear(file.config["width"], file.config["width"]) for _ in range(file.config["depth"])]
    return {"out.y": torch.tensor([float(len(layers))])}


BUILD = {"build": Kind(build, 0.0, options=("depth", "width"), limits={"width": 10**9})}
COUNTED = {"counted": Kind(lambda file: {"config.macs": 10**12}, 0.0, results=("macs",), options=("cases",))}


def write(path: Path, config: str, kind: str = "build", **tensors: Tensor) -> Path:
    save_file(tensors or {"out.y": torch.tensor([2.0])}, path, metadata={"kind": kind, "config": config})
    return path


def fault(capsys: pytest.CaptureFixture[str], path: Path, kinds: dict[str, Kind]) -> str:
    """The line with which a file fails, found in a moment."""
    start = time.process_time()
    assert run([path], kinds) == 1
    assert time.process_time() - start < 10
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(lines) == 1 and len(lines[0]) < 400 + len(str(path))
    return lines[0].removeprefix(f"FAIL {path}: ")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('{"depth": 1000000, "width": 2}', "config.depth is 1000000; the most that this kind takes is 100000"),
        ('{"depth": -1000000, "width": 2}', "config.depth is -1000000"),
        ('{"depth": 1e6, "width": 2}', "config.depth is 1000000.0"),
        ('{"depth": 2, "width": {"a": [1, 9999999]}}', "config.width.a.1 is 9999999"),
        ('{"depth": 100000, "width": 2}', "its options ask for a far larger network"),
        ('{"depth": ' + "9" * 4000 + ', "width": 2}', "config.depth is 9999"),
        ('{"depth": ' + "9" * 5000 + ', "width": 2}', "broken metadata: config is not JSON"),
        ('{"depth": ' + "[" * 100_000 + "]" * 100_000 + "}", "broken metadata: config is not JSON (it is nested"),
        ('{"depth": ' + "[" * 70 + "]" * 70 + "}", "broken metadata: config is not JSON (it is nested"),
        ('{"depth": [' + "0," * 300_000 + "0]}", "broken metadata: config is not JSON (it holds more than"),
    ],
    ids=range(10),
)
def test_a_config_cannot_ask_for_hours(
    config: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([write(tmp_path / "good.safetensors", '{"depth": 2, "width": 2}')], BUILD) == 0
    capsys.readouterr()
    assert fault(capsys, write(tmp_path / "f.safetensors", config), BUILD).startswith(says)


def test_results_and_allowed_options_may_be_large(tmp_path: Path) -> None:
    """Multiply-adds of a network are no option; an option may be large where its kind says so."""
    config = {"macs": 10**12, "cases": [{"seed": 3}]}
    path = write(tmp_path / "f.safetensors", json.dumps(config), "counted", **{"in.x": torch.ones(1)})
    assert run([path], COUNTED) == 0
    check_sizes(
        {"a": {"seed": 10**9, "n": 5}, "on": True, "lr": 1e-9, "big": 123456.5, "steps": 10**6}, {"steps": 10**6}
    )
    with pytest.raises(UserError, match=r"^options\.cases\.0\.steps is 11; the most that this kind takes is 10$"):
        check_sizes({"cases": [{"steps": 11}]}, {"cases.*.steps": 10}, where="options")
    with pytest.raises(UserError, match=rf"config\.a\.n is {LARGEST_NUMBER + 1}"):
        check_sizes({"a": {"n": LARGEST_NUMBER + 1}}, {"n": 10**9}, results=("n", "a.b.n"))


def test_a_kind_that_checks_itself_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"params": 86_000_000}))
    assert run([path], {"table": Kind(lambda file: {"sum": Check(0, 0)}, 0.0)}) == 0
    assert run([path], {"table": Kind(lambda file: {"sum": Check(0, 0)}, 0.0, limits={"n": 1})}) == 1


def test_the_bound_on_parameters_ends_with_the_work() -> None:
    with pytest.raises(UserError, match="far larger network"), at_most([], parameters=3):
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(UserError, match="far larger network"), at_most([], numbers=5):
        nn.Linear(2, 2)
    with at_most([], numbers=5), torch.device("meta"):
        nn.Linear(1000, 1000)
    with at_most([torch.ones(1)], parameters=0, numbers=0):
        nn.Linear(2, 2)
    nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


# --- the file itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [-1, -9, 120, 300])
def test_a_sealed_file_is_checked(place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped bit in an input that the kind never reads would pass otherwise."""
    path = tmp_path / "f.safetensors"
    tensors = {"out.y": torch.tensor([2.0]), "in.unread": torch.ones(8)}
    save_weights(path, tensors, {"kind": "build", "config": '{"depth": 2, "width": 2}', "describes": "x" * 100})
    assert run([path], BUILD) == 0
    capsys.readouterr()
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert fault(capsys, path, BUILD).startswith("cannot be read: damaged: its checksum does not match")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("build.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        ("build.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        ("build.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        ("build.safetensors", b"<!DOCTYPE html><title>404</title>", "damaged or no checkpoint: it is a web page"),
        ("build.safetensors", (1 << 60).to_bytes(8, "little") + b"{}", "damaged or no safetensors file: its header"),
        ("build.json", b"[" * 200_000, "damaged or no JSON: it is nested more than"),
        ("build.json", b"[" + b"[]," * 250_000 + b"[]]", "damaged or no JSON: it holds more than"),
        ("build.json", b" " * 5_000_000, "larger than 4194304 bytes"),
        ("build.json", b"", "empty (0 bytes)"),
        ("build.json", b"\xff\xfe", "damaged or no JSON: "),
        ("build.pth", b"PK\x03\x04", "damaged or no checkpoint"),
    ],
)
def test_each_fault_is_one_line(
    name: str, content: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert fault(capsys, tmp_path / name, BUILD).startswith(f"cannot be read: {says}")


def test_no_option_is_advised_that_verify_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "build.pth")
    line = fault(capsys, tmp_path / "build.pth", BUILD)
    assert "it wants torch.nn.modules.linear.Linear" in line and "--trust-pickle" not in line


# --- altered twins of every kind of number --------------------------------------------------------------------------

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
TYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_an_altered_twin_of_every_type_fails(dtype: torch.dtype, tmp_path: Path) -> None:
    y = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).to(dtype)
    right = Kind(lambda file: {"out.y": y}, 1e-6)
    path = write(tmp_path / "f.safetensors", "{}", "k", **{"out.y": y})
    assert run([path], {"k": right}) == 0
    change = 1j if dtype.is_complex else 1
    for place in range(y.numel()):
        twin = y.clone().to(torch.complex128 if dtype.is_complex else torch.float64).flatten()
        twin[place] = twin[place] + change if dtype != torch.bool else 1 - twin[place]
        write(path, "{}", "k", **{"out.y": twin.view(2, 2).to(dtype)})
        assert run([path], {"k": right}) == 1


def test_twins_whose_difference_is_hard_to_see(tmp_path: Path) -> None:
    big = torch.tensor([2**53 + 1, 5])
    path = write(tmp_path / "f.safetensors", "{}", "k", **{"out.y": torch.tensor([2**53, 5])})
    assert run([path], {"k": Kind(lambda file: {"out.y": big}, 1e-3)}) == 1, "whole numbers are compared exactly"
    write(path, "{}", "k", **{"out.y": torch.tensor([torch.inf, 1.0])})
    for value in ([-torch.inf, 1.0], [torch.inf, 2.0], [1e30, 1.0]):
        assert run([path], {"k": Kind(lambda file, value=value: {"out.y": torch.tensor(value)}, 1e-3)}) == 1
    write(path, "{}", "k", **{"out.y": torch.tensor([1 + 1j, torch.nan])})
    assert run([path], {"k": Kind(lambda file: {"out.y": torch.tensor([1 + 1j, torch.nan])}, 1e-3)}) == 1


@pytest.mark.parametrize(
    ("computed", "right", "altered"),
    [
        (3, "3", ["4", "3.5", "true", '"3"', "null", "[3]", "-3"]),
        (0.5, "0.5", ["0.5000001", "0", "-0.5", "NaN", "Infinity"]),
        (True, "true", ["1", "false", '"true"']),
        (None, "null", ["0", "false", '""']),
        ([1, 2], "[1, 2]", ["[2, 1]", "[1]", "[1, 2, 3]", "[1, 2.5]", "[[1, 2]]"]),
        ({"a", "b"}, '["b", "a"]', ['["a"]', '["a", "c"]', '["a", "b", "b"]']),
        ({1: [0.5]}, '{"1": [0.5]}', ['{"1": [0.25]}', '{"2": [0.5]}', "{}", '{"1": [0.5], "2": 0}']),
        (torch.tensor([[1, 0]]), "[[1, 0]]", ["[[1, 1]]", "[1, 0]", "[[1, 0], [1, 0]]"]),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),  # the same in every worker
)
def test_an_altered_twin_of_every_result_in_a_config_fails(
    computed: Any, right: str, altered: list[str], tmp_path: Path
) -> None:
    kinds = {"k": Kind(lambda file: {"config.r": computed}, 0.0, results=("r",), config_tolerance=1e-9)}
    path = tmp_path / "k.json"
    path.write_text(f'{{"r": {right}}}')
    assert run([path], kinds) == 0
    for text in altered:
        path.write_text(f'{{"r": {text}}}')
        assert run([path], kinds) == 1, text
