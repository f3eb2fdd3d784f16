"""Checkpoint files: what is written is read back, damage is noticed, foreign files are safe, keys are accounted for."""

import argparse
import io
import os
import pathlib
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.seal import COMMENT_MARKS, HEADER_MARKS
from paperkit.files.weights import (
    KeyReport,
    load_report,
    load_strict,
    read_checkpoint,
    read_metadata,
    read_weights,
    save_checkpoint,
    save_weights,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def training_state() -> dict[str, Any]:
    """What a run's checkpoint holds: weights, optimiser, plain values of many types."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    values = {"lr": 0.1, "name": "ü", "none": None, "set": {1, 2}, "size": torch.Size([2]), "dtype": torch.float16}
    return {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], "global_step": 7, **values}


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def refusal(path: Path, **options: Any) -> str:
    """The line with which `path` is refused."""
    with pytest.raises(UserError) as caught:
        read_checkpoint(path, **options)
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    assert len(line) < 250 + 2 * len(str(path))
    return line


# --- round trips ----------------------------------------------------------------------------------------------------


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    state = training_state()
    save_checkpoint(tmp_path / "last.ckpt", state)
    assert_equal(read_checkpoint(tmp_path / "last.ckpt"), state)
    assert_equal(torch.load(tmp_path / "last.ckpt", weights_only=True), state)
    assert_equal(torch.load(tmp_path / "last.ckpt", weights_only=True, mmap=True), state)
    with zipfile.ZipFile(tmp_path / "last.ckpt") as archive:
        assert archive.testzip() is None, "the seal is a regular comment of a zip file"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.bool])
def test_weights_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {
        "a.weight": torch.randn(3, 5).to(dtype),
        "scalar": torch.tensor(3),
        "none": torch.zeros(0, 2),
        "ü": torch.ones(1),
    }
    metadata = {"kind": "test", "note": 'quotes " and \n lines, ü'}
    save_weights(tmp_path / "w.safetensors", state, metadata)
    for found in (read_weights(tmp_path / "w.safetensors"), safetensors.torch.load_file(tmp_path / "w.safetensors")):
        assert set(found) == set(state)
        for key, value in state.items():
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
        assert torch.equal(found["scalar"], state["scalar"])
        assert torch.equal(found["ü"], state["ü"])
        assert torch.equal(found["a.weight"].view(torch.uint8), state["a.weight"].view(torch.uint8))
    assert read_metadata(tmp_path / "w.safetensors") == metadata
    with safetensors.safe_open(tmp_path / "w.safetensors", framework="np") as file:
        assert file.metadata()["kind"] == "test"


def test_tied_and_strided_weights(tmp_path: Path) -> None:
    """safetensors refuses tensors that share memory; a state dict of a model with tied weights has them."""
    base = torch.arange(12.0).view(3, 4)
    save_weights(tmp_path / "w.safetensors", {"a": base, "b": base, "c": base.T, "d": base[1:]})
    found = read_weights(tmp_path / "w.safetensors")
    for key, expected in {"a": base, "b": base, "c": base.T, "d": base[1:]}.items():
        assert torch.equal(found[key], expected)


def test_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    state = training_state()
    for name in ("a", "b"):
        save_checkpoint(tmp_path / f"{name}.ckpt", state)
        save_weights(tmp_path / f"{name}.safetensors", state["state_dict"], {"z": "1", "a": "2", "m": "3"})
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("value", [pathlib.Path("x"), np.float32(1), argparse.ArgumentParser], ids=repr)
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, value: Any) -> None:
    """Found at the first save, not an hour later at the resume; the old file stays."""
    save_checkpoint(tmp_path / "last.ckpt", {"step": 1})
    with pytest.raises(UserError, match=r"cannot write .*last\.ckpt: it would hold .*(pathlib|numpy|argparse)"):
        save_checkpoint(tmp_path / "last.ckpt", {"hyper_parameters": {"value": value}})
    assert read_checkpoint(tmp_path / "last.ckpt") == {"step": 1}


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One file of each kind, by name."""
    folder, state = tmp_path_factory.mktemp("files"), training_state()
    save_checkpoint(folder / "own.ckpt", state)
    save_weights(folder / "own.safetensors", state["state_dict"], {"kind": "test"})
    torch.save(state, folder / "foreign.pt")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state["state_dict"], folder / "foreign.safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def damaged(data: bytes, draw: random.Random) -> bytes:
    """`data` cut short, with a flipped bit, with some bytes replaced, or with some inserted."""
    kind, place = draw.randrange(4), draw.randrange(len(data))
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
    noise = draw.randbytes(draw.randrange(1, 9))
    return data[:place] + noise + data[place + (len(noise) if kind == 2 else 0) :]


@pytest.mark.parametrize("name", ["own.ckpt", "own.safetensors"])
def test_own_files_refuse_every_damage(tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    draw, path = random.Random(name), tmp_path / name
    for _ in range(500):
        data = damaged(files[name], draw)
        if data != files[name]:
            path.write_bytes(data)
            refusal(path)


@pytest.mark.parametrize("name", ["foreign.pt", "old.pth", "foreign.safetensors"])
def test_foreign_files_read_or_are_refused(tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    """Damage to a weight cannot be seen in a foreign file; any other must end in the one line, never in a crash."""
    draw, path, read = random.Random(name), tmp_path / name, 0
    for _ in range(500):
        path.write_bytes(damaged(files[name], draw))
        try:
            read_checkpoint(path)
            read += 1
        except UserError:
            refusal(path)
    assert 0 < read < 400, "both outcomes were seen"


@pytest.mark.parametrize(("name", "marks"), [("own.ckpt", COMMENT_MARKS), ("own.safetensors", HEADER_MARKS)])
def test_every_bit_of_the_seal_itself(
    tmp_path: Path, files: dict[str, bytes], name: str, marks: tuple[bytes, bytes]
) -> None:
    """Neither a flipped bit in the marks nor a missing end makes it seem a file from elsewhere."""
    data, path = files[name], tmp_path / name
    first, last = data.rindex(marks[0]) - 10, data.rindex(marks[1]) + len(marks[1])
    for bit in range(8 * max(0, first), 8 * last):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        refusal(path)
    for length in range(len(data) - 150, len(data)):
        path.write_bytes(data[:length])
        refusal(path)


def test_damage_is_told_from_a_wrong_path(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = tmp_path / "own.ckpt"
    assert refusal(path) == f"no checkpoint at {path}"
    assert refusal(tmp_path) == f"{tmp_path} is a folder, not a checkpoint file"
    path.write_bytes(b"")
    assert refusal(path) == f"{path} is empty (0 bytes)"
    path.write_bytes(files["own.ckpt"][:-1] + b"!")
    assert refusal(path).startswith(f"{path} is damaged: its checksum does not match")
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe").endswith("is not a regular file"), "opening it would wait for ever"
    with pytest.raises(UserError, match=r"cannot read"):
        read_checkpoint("zero\0byte")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"\0" * 100, b"PK\x03\x04" + b"\0" * 60, b"\x80", b"\xff" * 9])
def test_no_checkpoint_at_all(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "is damaged or no" in refusal(tmp_path / name)


def test_absurd_sizes_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert "claims 50000000 bytes" in refusal(tmp_path / "bomb.pt")
    (tmp_path / "long.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    refusal(tmp_path / "long.safetensors")
    header = b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    (tmp_path / "wide.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refusal(tmp_path / "wide.safetensors")


# --- code in pickles ------------------------------------------------------------------------------------------------


class Hostile:
    """Pickles to a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def as_zip(value: Any, protocol: int) -> bytes:
    torch.save(value, buffer := io.BytesIO(), pickle_protocol=protocol)
    return buffer.getvalue()


def as_old(value: Any, protocol: int) -> bytes:
    torch.save(value, buffer := io.BytesIO(), pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("dump", [as_zip, as_old, pickle.dumps])
def test_hostile_pickle_is_refused_and_named(tmp_path: Path, dump: Callable[[Any, int], bytes], protocol: int) -> None:
    (tmp_path / "x.pt").write_bytes(dump({"model": {"w": 1}, "x": Hostile(tmp_path / "made")}, protocol))
    line = refusal(tmp_path / "x.pt")
    assert "it wants posix.mkdir, and a pickle that builds it can run code" in line
    assert "--trust-pickle" in line
    assert not (tmp_path / "made").exists()
    if dump is as_zip and protocol:
        read_checkpoint(tmp_path / "x.pt", trust_pickle=True)
        assert (tmp_path / "made").exists(), "the file was hostile indeed, and trust is explicit"


def test_whole_model_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "x.pt")
    assert "it wants torch.nn.modules.linear.Linear" in refusal(tmp_path / "x.pt")
    assert isinstance(read_checkpoint(tmp_path / "x.pt", trust_pickle=True), nn.Linear)


def test_options_of_released_files_are_read(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth")["args"].lr == 0.1
    assert set(read_weights(tmp_path / "x.pth")) == {"w"}


class StandIn:
    """Takes the place of a class of a library that may not be installed, whatever the file fills it with."""

    def __new__(cls, *_: Any) -> "StandIn":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...


def test_allowed_stand_in(tmp_path: Path) -> None:
    names = ("numpy._core.multiarray.scalar", "numpy.dtype", "numpy.dtypes.Float64DType")
    torch.save({"state_dict": {"w": torch.ones(1)}, "x": np.float64(1)}, tmp_path / "x.ckpt")
    assert f"it wants {names[0]}," in refusal(tmp_path / "x.ckpt")
    assert f"it wants {names[1]}," in refusal(tmp_path / "x.ckpt", allow=[(StandIn, names[0])])
    assert set(read_weights(tmp_path / "x.ckpt", allow=[(StandIn, name) for name in names])) == {"w"}
    assert f"it wants {names[0]}," in refusal(tmp_path / "x.ckpt"), "allowed for that one call only"


# --- state dicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["a.w", "b"], ["a.w", "b"]),
        (["module.a.w", "module.b"], ["a.w", "b"]),
        (["_orig_mod.module.a.w", "_orig_mod.module.b"], ["a.w", "b"]),
        (["module._orig_mod.a.w", "module._orig_mod.b"], ["a.w", "b"]),
        (["net._orig_mod.a.w", "head.b"], ["net.a.w", "head.b"]),
        (["module.a.w", "other.b"], ["module.a.w", "other.b"]),
    ],
)
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_prefixes_of_wrappers(tmp_path: Path, keys: list[str], expected: list[str], key: str | None) -> None:
    state = {name: torch.full((1,), float(i)) for i, name in enumerate(keys)}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")
    assert list(found) == expected
    assert [float(value) for value in found.values()] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no weights but a list"),
        ({}, "holds no state dict"),
        ({"epoch": 3, "w": torch.ones(1)}, "beside tensors it has epoch"),
        ({"model": {"a": torch.ones(1), "n": 2}}, "beside tensors it has n"),
        ({"_orig_mod.a": torch.ones(1), "a": torch.ones(1)}, "holds one weight twice"),
    ],
)
def test_file_without_a_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "x.pth")


def test_strict_load_names_the_keys_and_changes_nothing() -> None:
    model, before = network(), network().state_dict()
    state = {key: value + 1 for key, value in before.items()}
    del state["2.bias"]
    state["2.weight"] = torch.zeros(3, 6)
    state["1.running_mean"] = torch.zeros(6, dtype=torch.complex64)
    state["extra"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        load_strict(model, state, "released.pth")
    assert str(caught.value) == (
        "released.pth does not fit Sequential: 1 missing: 2.bias; 1 unexpected: extra; "
        "2 misshapen: 1.running_mean (file 6 complex64, model 6 float32), 2.weight (file 3x6, model 2x6)"
    )
    assert_equal(dict(model.state_dict()), dict(before))
    load_strict(model, {key: value + 1 for key, value in before.items()}, "released.pth")
    assert torch.equal(model.state_dict()["0.weight"], before["0.weight"] + 1)


def test_report_loads_what_fits() -> None:
    model, state = network(), {key: value + 1 for key, value in network().state_dict().items()}
    state["2.weight"] = torch.zeros(3, 6)
    report = load_report(model, state)
    assert not report.fits
    assert report == KeyReport([], [], ["2.weight (file 3x6, model 2x6)"])
    assert torch.equal(model.state_dict()["0.weight"], state["0.weight"])
    assert load_report(model, model.state_dict()).message() == "every key fits"


def test_weights_from_before_batchnorm_counted_fit() -> None:
    state = {key: value for key, value in network().state_dict().items() if not key.endswith("num_batches_tracked")}
    load_strict(network(), state, "old.pth")


def test_key_map() -> None:
    model = network()
    scheme = {"fc.weight": "2.weight", "fc.bias": "2.bias", "index": None}
    state = dict(model.state_dict())
    state["fc.weight"], state["fc.bias"] = state.pop("2.weight") + 1, state.pop("2.bias")
    state["index"] = torch.zeros(9)
    load_strict(model, state, "x", scheme)
    assert torch.equal(model.state_dict()["2.weight"], state["fc.weight"])
    load_strict(model, state, "x", lambda key: scheme.get(key, key))
    with pytest.raises(ValueError, match=r"sends both 0\.bias and fc\.bias to 0\.bias"):
        load_strict(model, state, "x", {"fc.bias": "0.bias"})


def test_long_lists_of_keys_are_cut_but_counted() -> None:
    report = KeyReport([f"blocks.{i}.weight" for i in range(300)], ["x" * 5000], [])
    line = report.message()
    assert line.startswith(
        "300 missing: blocks.0.weight, blocks.1.weight, blocks.2.weight, blocks.3.weight and 296 more; 1 "
    )
    assert len(line) < 300
