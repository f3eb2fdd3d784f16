"""Files as people have them and as an adversary makes them: read for what they are, or refused in one line."""

import contextlib
import gzip
import io
import lzma
import pickle
import resource
import struct
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.arrays import read_npz
from paperkit.files.bounded import parse_json, read_json
from paperkit.files.weights import (
    check_finite,
    load_strict,
    read_checkpoint,
    read_metadata,
    read_safetensors,
    read_weights,
    save_checkpoint,
    save_weights,
)


def state(value: float = 1.0, *keys: str) -> dict[str, Tensor]:
    return {key: torch.full((2,), value) for key in keys or ("a.weight", "b.bias")}


def line_of(read: Callable[..., Any], path: Path, **options: Any) -> str:
    """The line with which `path` is refused, in a moment and without much memory."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        read(path, **options)
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kB"
    line = str(caught.value)
    assert str(path) in line and "\n" not in line and len(line) < 400 + 2 * len(str(path))
    return line.replace(str(path), "F")


# --- npz ------------------------------------------------------------------------------------------------------------


def test_npz_round_trip(tmp_path: Path) -> None:
    arrays = {
        "Transformer/encoderblock_0/kernel": numpy.random.default_rng(0).normal(size=(3, 4, 5)).astype("float32"),
        "opt/target/cls": numpy.zeros((1, 1, 4), "float16"),
        "fortran": numpy.asfortranarray(numpy.arange(6).reshape(2, 3)),
        "scalar": numpy.float64(3),
        "none": numpy.zeros((0, 3), "int8"),
        "text": numpy.array(["a", "bc"]),
    }
    for save in (numpy.savez, numpy.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        found = read_npz(tmp_path / "x.npz")
        assert list(found) == list(arrays)
        for name, value in arrays.items():
            assert found[name].dtype == value.dtype and numpy.array_equal(found[name], value)
        torch.from_numpy(found["opt/target/cls"]).add_(1)  # may be written to


def member(array: numpy.ndarray, **header: Any) -> bytes:
    """An array in numpy's format, with changed entries of its header."""
    numpy.save(file := io.BytesIO(), array)
    if not header:
        return file.getvalue()
    told = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **header}
    numpy.lib.format.write_array_header_1_0(file := io.BytesIO(), told)
    return file.getvalue() + array.tobytes()


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_small_npz_that_swells_is_refused(tmp_path: Path) -> None:
    """1.6 MB of zeros are 1.6 GB; one member, many members, and the same under a name of torch's."""
    with (
        zipfile.ZipFile(tmp_path / "one.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("w.npy", "w", force_zip64=True) as file,
    ):
        numpy.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (300 << 20,)})
        for _ in range(1200):
            file.write(bytes(1 << 20))
    many = packed(tmp_path / "many.npz", {f"{i}.npy": member(numpy.zeros(1 << 20, "u1")) for i in range(100)})
    for path in (tmp_path / "one.npz", many):
        assert path.stat().st_size < 2_000_000
        assert "F cannot be read as npz: it would expand from" in line_of(read_npz, path)
    (tmp_path / "one.npz").rename(tmp_path / "one.pth")
    assert "F is damaged or no checkpoint: its directory claims" in line_of(read_weights, tmp_path / "one.pth")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"w.npy": member(numpy.ones(3), shape=(10**12,))}, "w needs 80000"),
        ({"w.npy": member(numpy.ones(3), shape=(2,))}, "w needs"),
        ({"w.npy": member(numpy.ones(3), shape=(-3, -1))}, "w is of type float64 and shape (-3, -1)"),
        ({"w.npy": member(numpy.ones(3), descr="|O")}, "w holds pickled objects"),
        ({"w.npy": member(numpy.array([{}], object), descr="|O")}, "w holds pickled objects"),
        ({"w.npy": member(numpy.ones(3), descr="|V0", shape=(10**15,))}, "w is of type"),
        ({"w.npy": pickle.dumps({"a": 1})}, "magic string is not correct"),
        ({"w.npy": b""}, "EOF"),
        ({"../w.npy": member(numpy.ones(1))}, "its member '../w.npy' is no array"),
        ({"/w.npy": member(numpy.ones(1))}, "its member '/w.npy' is no array"),
        ({"data.pkl": b"x"}, "its member 'data.pkl' is no array"),
        ({"w.npy": member(numpy.array([1, numpy.nan]))}, "w holds NaN"),
        ({"w.npy": member(numpy.array([1, numpy.inf], "float16"))}, "w holds NaN or infinite"),
        ({}, "it has 0 members"),
    ],
)
def test_each_fault_of_an_npz_is_one_line(members: dict[str, bytes], says: str, tmp_path: Path) -> None:
    assert says in line_of(read_npz, packed(tmp_path / "x.npz", members))


def test_more_faults_of_an_npz(tmp_path: Path) -> None:
    good = member(numpy.ones(100))
    assert "in a way that numpy" in line_of(read_npz, packed(tmp_path / "x.npz", {"w.npy": good}, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        archive.writestr("w.npy", good)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("w.npy", good)
    assert "it holds w.npy twice" in line_of(read_npz, tmp_path / "twice.npz")
    data = packed(tmp_path / "x.npz", {"w.npy": good}).read_bytes()
    for cut in range(0, len(data), 11):
        (tmp_path / "x.npz").write_bytes(data[:cut])
        line_of(read_npz, tmp_path / "x.npz")
    for place in range(0, len(data), 5):
        (tmp_path / "x.npz").write_bytes(data[:place] + bytes([data[place] ^ 8]) + data[place + 1 :])
        with contextlib.suppress(UserError):
            read_npz(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert line_of(read_npz, tmp_path / "x.npz") == "F is a Git LFS pointer, not the file: git lfs pull"
    assert line_of(read_npz, tmp_path / "absent.npz") == "no npz file at F"
    packed(tmp_path / "mac.npz", {"w.npy": good, "__MACOSX/._w.npy": b"junk"})
    assert list(read_npz(tmp_path / "mac.npz")) == ["w"]
    packed(tmp_path / "nan.npz", {"w.npy": member(numpy.array([numpy.nan]))})
    assert numpy.isnan(read_npz(tmp_path / "nan.npz", finite=False)["w"]).all()


# --- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"[" * 500_000, "F is damaged or no JSON: it is nested more than 64 levels deep"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "F is damaged or no JSON: it is nested more than 64 levels deep"),
        (b"[" + b"0," * 300_000 + b"0]", "F is damaged or no JSON: it holds more than 200000 values"),
        (b" " * (5 << 20), "F is larger than 4194304 bytes"),
        (b"9" * 100_000, "F is damaged or no JSON: Exceeds the limit"),
        (b"\xff\xff", "F is damaged or no JSON: "),
        (b"", "F is empty (0 bytes)"),
    ],
    ids=range(7),
)
def test_json_is_read_within_bounds(raw: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(raw)
    assert line_of(read_json, tmp_path / "x.json").startswith(says)


def test_json_as_people_have_it(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null, "\xc3\xbc"]}\n')
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, None, "ü"]}
    assert parse_json("[" * 60 + "]" * 60)


# --- safetensors and torch's files, told by their content -----------------------------------------------------------


def header(text: str, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text.encode() + data


@pytest.mark.parametrize(
    "raw",
    [
        header("{}", length=1 << 62),
        header("{}", length=(1 << 64) - 1),
        header("{" + " " * (40 << 20) + "}"),
        header('{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
        header('{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', bytes(8)),
        header('{"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}', bytes(12)),
        header('{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
        header(
            '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"v":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
            bytes(12),
        ),
        header('{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', bytes(8)),
        header('{"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', bytes(8)),
        header('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(9)),
        header('{"w":' + "[" * 100_000 + "]" * 100_000 + "}"),
        b"{",
    ],
    ids=range(13),
)
@pytest.mark.parametrize("read", [read_weights, read_metadata, read_safetensors])
def test_a_safetensors_header_that_claims_too_much(raw: bytes, read: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(raw)
    assert line_of(read, tmp_path / "x.safetensors").startswith("F is damaged or no safetensors file")


def zipped(content: Any) -> bytes:
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


def rewritten(path: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    packed(path, {name: change(name, data) for name, data in members.items()}, method)


def test_a_checkpoint_that_claims_too_much(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.arange(10.0)}, path)
    number = pickle.dumps(10**9, 2)[2:-1]
    rewritten(path, lambda name, data: data.replace(b"K\x0a", number) if name.endswith("data.pkl") else data)
    assert line_of(read_weights, path).startswith("F is damaged or no checkpoint: ")
    old = {"w": torch.arange(10.0)}
    torch.save(old, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\x0a", number))
    assert line_of(read_weights, path).startswith("F is damaged or no checkpoint: ")
    for views in ({"w": torch.ones(1).expand(10**5, 10**6)}, {"model": [{"deep": torch.ones(1).expand(10**10)}]}):
        torch.save(views, path)
        assert "its tensors claim 4" in line_of(read_checkpoint, path)
    torch.save({"w": torch.empty(10**12, device="meta")}, path)
    assert line_of(read_weights, path) == "F holds no numbers for w: it was saved from the meta device"
    torch.save({"w": torch.zeros(10_000_000)}, path)
    rewritten(path, lambda _, data: data, zipfile.ZIP_DEFLATED)
    assert "its directory claims 400" in line_of(read_weights, path)
    torch.save({"w": torch.rand(10)}, path)
    rewritten(path, lambda name, data: data + bytes(0), zipfile.ZIP_DEFLATED)
    assert line_of(read_weights, path).startswith("F is damaged or no checkpoint: its ")
    packed(path, {"model/data.pkl": b"\x80\x02N.", "readme.txt": b"x"}, zipfile.ZIP_STORED)
    assert line_of(read_weights, path).startswith("F is damaged or no checkpoint")


def tar(data: bytes) -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as archive:
        entry = tarfile.TarInfo("x.pth")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def nested_zip(data: bytes) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("weights/x.pth", data)
    return file.getvalue()


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.pth.tar"])
@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "F is a Git LFS pointer, not the file: git lfs pull",
        ),
        (b"\n\n<!doctype html>\n<html><head>", "F is damaged or no checkpoint: it is a web page (HTML or XML)"),
        (b"<html lang='en'>", "F is damaged or no checkpoint: it is a web page (HTML or XML)"),
        (b"<?xml version='1.0'?><Error>", "F is damaged or no checkpoint: it is a web page (HTML or XML)"),
        (gzip.compress(zipped(state())), "F is compressed by gzip: unpack it first"),
        (lzma.compress(zipped(state())), "F is compressed by xz: unpack it first"),
        (tar(zipped(state())), "F is a tar archive: unpack it first"),
        (nested_zip(zipped(state())), "F is damaged or no checkpoint: it is a zip file of weights/x"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "F is an HDF5 file"),
        (b"GGUF" + bytes(100), "F is a GGUF file"),
        (b"", "F is empty (0 bytes)"),
        (b"\0", "F is damaged or no"),
        (b'{"message": "Not Found"}', "F is damaged or no"),
    ],
    ids=range(13),
)
def test_what_is_no_checkpoint_is_called_by_its_name(name: str, raw: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    assert line_of(read_weights, tmp_path / name).startswith(says)


def test_a_file_is_read_whatever_its_suffix(tmp_path: Path) -> None:
    """A safetensors file named .pth and the reverse; a header whose length begins like a gzip file."""
    save_weights(tmp_path / "own.safetensors", state(3.0), {"kind": "x"})
    (tmp_path / "own.safetensors").rename(tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth")["a.weight"].tolist() == [3, 3]
    assert read_metadata(tmp_path / "x.pth") == {"kind": "x"}
    for name in ("pytorch_model.bin", "model.ckpt", "weights"):
        safetensors.torch.save_file(state(4.0), tmp_path / name)
        assert read_weights(tmp_path / name)["a.weight"].tolist() == [4, 4]
    for old in (False, True):
        torch.save({"model": state(5.0)}, tmp_path / "y.safetensors", _use_new_zipfile_serialization=not old)
        assert read_weights(tmp_path / "y.safetensors")["b.bias"].tolist() == [5, 5]
    text = safetensors.torch.save(state(6.0))
    length = struct.unpack("<Q", text[:8])[0]
    padded = text[8 : 8 + length].decode() + " " * (0x8B1F - length)
    (tmp_path / "z.safetensors").write_bytes(header(padded, text[8 + length :]))
    assert (tmp_path / "z.safetensors").read_bytes().startswith(b"\x1f\x8b")
    assert read_weights(tmp_path / "z.safetensors")["a.weight"].tolist() == [6, 6]


def test_a_script_of_torch_is_called_so(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(nn.Linear(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted.save(str(tmp_path / "x.pt"))
    assert "it is a TorchScript archive" in line_of(read_weights, tmp_path / "x.pt")


# --- which of the state dicts ---------------------------------------------------------------------------------------

OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
BESIDE = {"epoch": 3, "optimizer": OPTIMIZER, "best_acc": 81.2, "rng_states": {"cpu": torch.zeros(8).byte()}}


@pytest.mark.parametrize(
    "content",
    [
        *({key: state(7.0), **BESIDE} for key in ("state_dict", "model", "module", "net", "network", "params")),
        *({key: state(7.0), **BESIDE} for key in ("model_state", "model_state_dict", "state_dict_ema", "model_ema")),
        *({key: state(7.0), **BESIDE} for key in ("teacher", "ema", "encoder", "generator_weights")),
        {"model": state(7.0), "model_ema": state(8.0), **BESIDE},
        {"state_dict": state(7.0), "state_dict_ema": state(8.0), **BESIDE},
        {"state_dict": state(7.0), "net": state(8.0)},
        {"state_dict": {"model": state(7.0)}, "meta": {"epoch": 1}},
        {"model": {"state_dict": state(7.0)}},
        {"checkpoint": {"model": state(7.0), "model_ema": state(8.0)}, "args": {"lr": 0.1}},
        {"teacher": {"net": state(7.0)}},
        {"module": state(7.0), "buffer_names": ["x"], "dp_world_size": 2, "param_shapes": [{"a": torch.Size([2])}]},
        {
            "state_dict": state(7.0),
            "callbacks": {"EMA": {"weights": state(8.0)}},
            "loops": {"fit_loop": {"state_dict": {}}},
            "pytorch-lightning_version": "2.6",
            "hyper_parameters": {"a": torch.ones(1)},
            "optimizer_states": [OPTIMIZER],
        },
        {"meta": {"epoch": 1}, "state_dict": state(7.0), "optimizer": OPTIMIZER, "message_hub": {"runtime": {}}},
        {"n_averaged": torch.tensor(5), "module.a.weight": torch.full((2,), 7.0), "module.b.bias": torch.ones(2)},
        {"module._orig_mod._fsdp_wrapped_module.a.weight": torch.full((2,), 7.0), "module.b.bias": torch.ones(2)},
        {"_orig_mod.a._checkpoint_wrapped_module.weight": torch.full((2,), 7.0), "_orig_mod.b.bias": torch.ones(2)},
    ],
    ids=range(27),
)
def test_one_state_dict_is_found(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")
    assert list(found) == ["a.weight", "b.bias"]
    assert found["a.weight"].tolist() == [7, 7]


@pytest.mark.parametrize(
    ("content", "says", "part"),
    [
        ({"teacher": state(1.0), "student": state(2.0)}, "teacher (2 tensors), student (2 tensors)", "teacher"),
        ({"params": state(1.0), "params_ema": state(2.0, "a")}, "params (2 tensors), params_ema (1 tensors)", "params"),
        ({"model": {"teacher": state(1.0), "student": state(2.0)}}, "model.teacher (2 tensors)", "model.teacher"),
        ({"G": {"state_dict": state(1.0)}, "D": {"model": state(2.0)}}, "G (2 tensors), D (2 tensors)", "G"),
        ({"x": {"net.g": state(1.0), "net.d": state(2.0)}}, "x.net.g (2 tensors)", "x.net.g"),
    ],
)
def test_several_state_dicts_are_named(content: dict[str, Any], says: str, part: str, tmp_path: Path) -> None:
    torch.save({**content, **BESIDE}, tmp_path / "x.pth")
    line = line_of(read_weights, tmp_path / "x.pth")
    assert (
        line.startswith("F holds 2 state dicts: ") and says in line and line.endswith(f"; choose one with part={part}")
    )
    assert line_of(read_weights, tmp_path / "x.pth", part_advice="--part").endswith(f"choose one with --part {part}")
    assert next(iter(read_weights(tmp_path / "x.pth", part=part).values())).tolist() == [1, 1]
    assert "F holds no part 'tutor'; the parts that it holds: " in line_of(
        read_weights, tmp_path / "x.pth", part="tutor"
    )


def test_a_part_is_taken_over_an_established_one(tmp_path: Path) -> None:
    torch.save({"model": state(1.0), "model_ema": state(2.0), **BESIDE}, tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth")["a.weight"].tolist() == [1, 1]
    assert read_weights(tmp_path / "x.pth", part="model_ema")["a.weight"].tolist() == [2, 2]
    line = line_of(read_weights, tmp_path / "x.pth", part="ema")
    assert line == "F holds no part 'ema'; the parts that it holds: model, model_ema"
    torch.save(state(), tmp_path / "x.pth")
    assert "the parts that it holds: one state dict" in line_of(read_weights, tmp_path / "x.pth", part="model")
    assert line_of(read_weights, tmp_path / "x.pth", part="a.weight").startswith("F holds no weights but a Tensor")


def test_a_trusted_model_gives_its_state_dict(tmp_path: Path) -> None:
    torch.save({"ema": nn.Linear(2, 2), "epoch": 3}, tmp_path / "x.pth")
    assert set(read_weights(tmp_path / "x.pth", trust_pickle=True)) == {"weight", "bias"}
    line = line_of(read_weights, tmp_path / "x.pth")
    assert line.endswith("can run code; if you trust where the file comes from, add --trust-pickle")
    assert line_of(read_weights, tmp_path / "x.pth", advice=None).endswith(", and a pickle that builds it can run code")
    line = line_of(read_checkpoint, tmp_path / "x.pth", advice="--backbone.trust_pickle true")
    assert line.endswith("if you trust where the file comes from, add --backbone.trust_pickle true")


def test_optimiser_states_alone_are_no_weights(tmp_path: Path) -> None:
    torch.save({"optimizer_state_dict": OPTIMIZER, "ds_version": "0.1"}, tmp_path / "x.pt")
    assert line_of(read_weights, tmp_path / "x.pt").startswith("F holds no state dict; beside tensors it has optimizer")


# --- weights that are no numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.ckpt"])
def test_weights_that_are_no_numbers_are_traced(name: str, dtype: torch.dtype, bad: float, tmp_path: Path) -> None:
    weights = {"a": torch.ones(3, dtype=dtype), "blocks.3.mlp.weight": torch.tensor([1, bad, 1, bad], dtype=dtype)}
    weights["c"] = torch.tensor([bad], dtype=dtype)
    if name == "x.safetensors":
        save_weights(tmp_path / name, weights)
    else:
        save_checkpoint(tmp_path / name, {"state_dict": weights})
    assert line_of(read_weights, tmp_path / name) == (
        "F holds weights that are no numbers: blocks.3.mlp.weight (2 of its 4 entries are NaN or infinite); "
        "so are some in 1 more"
    )
    assert len(read_weights(tmp_path / name, finite=False)) == 3
    read_checkpoint(tmp_path / name)


def test_masks_may_hold_infinities_and_bytes_are_looked_at() -> None:
    check_finite({"attn_mask": torch.tensor([0, -torch.inf]), "n": torch.tensor(3), "e": torch.zeros(0)}, "x")
    with pytest.raises(UserError, match=r"^x holds .*: attn_mask \(1 of its 2 entries"):
        check_finite({"attn_mask": torch.tensor([0, torch.nan])}, "x")
    with pytest.raises(UserError, match=r": w \(1 of its 2 entries"):
        check_finite({"w": torch.tensor([0, torch.nan]).to(torch.float8_e4m3fn)}, "x")


def test_a_position_table_of_another_grid_is_shown_with_both_shapes() -> None:
    class Table(nn.Module):
        def __init__(self, places: int) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, places, 4))

    with pytest.raises(UserError) as caught:
        load_strict(Table(197), Table(577).state_dict(), "x.pth")
    assert str(caught.value) == "x.pth does not fit Table: 1 misshapen: pos_embed (file 1x577x4, model 1x197x4)"
