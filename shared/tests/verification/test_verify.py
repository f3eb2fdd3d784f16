"""The mechanism of `<paper> verify FILE...`, on made reference files of a made-up linear layer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from paperkit.errors import UserError
from paperkit.verification.verify import Check, Kind, ReferenceFile, Tolerance, check_options, run


def compute_linear(file: ReferenceFile) -> dict[str, Any]:
    x = file.inputs["x"].clone().requires_grad_()
    y = x @ file.state["weight"].T * file.config["scale"]
    (y * file.inputs["cotangent"]).sum().backward()
    names = [{"row": i, "big": bool(row.abs().max() > 1)} for i, row in enumerate(file.state["weight"])]
    return {"out.y": y, "out.sign": (y > 0).to(torch.uint8), "grad.x": x.grad, "config.rows": names}


KINDS = {
    "linear": Kind(compute_linear, 1e-5, results=("rows",), options=("scale", "note"), requires=("in.x", "out.y")),
    "linear_big": Kind(compute_linear, 1e-5),
    "table": Kind(lambda file: {"config.sums": [sum(row) for row in file.config["rows"]]}, 0.0, results=("sums",)),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def made(path: Path, config: dict[str, Any] | None = None, **changes: Tensor | None) -> Path:
    """Writes a right `linear` file; `changes` replaces (or with None removes) tensors, `__` standing for a dot."""
    g = torch.Generator().manual_seed(0)
    weight, x, cotangent = (torch.randn(s, generator=g) for s in ((4, 6), (3, 6), (3, 4)))
    y = x @ weight.T * 2
    rows = [{"row": i, "big": bool(row.abs().max() > 1)} for i, row in enumerate(weight)]
    tensors = {"sd.weight": weight, "in.x": x, "in.cotangent": cotangent}
    tensors |= {"out.y": y, "out.sign": (y > 0).to(torch.uint8), "grad.x": cotangent @ weight * 2}
    tensors |= {name.replace("__", "."): t for name, t in changes.items()}  # type: ignore[dict-item]
    meta = {"kind": "linear", "config": json.dumps({"scale": 2, "rows": rows} | (config or {})), "describes": "a line"}
    save_file({k: t.contiguous() for k, t in tensors.items() if t is not None}, path, metadata=meta)
    return path


def outcome(capsys: pytest.CaptureFixture[str], *files: Path, **options: Any) -> tuple[int, list[str]]:
    code = run(files, KINDS, **options)
    return code, capsys.readouterr().out.splitlines()


def test_right_file_passes_and_every_item_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(tmp_path / "any_name.safetensors")
    code, lines = outcome(capsys, path)
    assert code == 0
    assert lines[0] == f"{path} (linear: a line)"
    assert {line.split()[1] for line in lines[1:-1]} == {"out.y", "out.sign", "grad.x", "config.rows"}
    assert all(line.split()[0] == "pass" for line in lines[1:-1])
    assert lines[-1] == "verified: 4 of 4 tensors in 1 file"


def nudged(name: str, by: float) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    weight, x, cotangent = (torch.randn(s, generator=g) for s in ((4, 6), (3, 6), (3, 4)))
    t = x @ weight.T * 2 if name == "out__y" else cotangent @ weight * 2
    t.view(-1)[-1] += by * t.abs().max()
    return {name: t}


@pytest.mark.parametrize("name", ["out__y", "grad__x"])
def test_one_altered_entry_fails_beyond_the_tolerance_only(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = (made(tmp_path / f"{by}.safetensors", **nudged(name, by)) for by in (3e-6, 3e-5))
    code, lines = outcome(capsys, small, large)
    failed = [line for line in lines if line.startswith("  FAIL")]
    assert code == 1 and len(failed) == 1 and failed[0].split()[1] == name.replace("__", ".")
    assert "tolerance 1e-05" in failed[0]
    assert lines[-1] == "verified: 7 of 8 tensors in 2 files, 1 file failed"
    assert run([large], KINDS, rtol=1e-4) == 0  # --rtol replaces the tolerance,
    assert run([small], KINDS, rtol=1e-6) == 1  # in both directions


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"out__sign": torch.zeros(3, 4, dtype=torch.uint8)}, "FAIL  out.sign"),
        ({"out__y": torch.zeros(3, 5)}, "shape (3, 4) computed, (3, 5) in the file"),
        ({"out__y": torch.full((3, 4), torch.nan)}, "reference holds 12 NaN of 12"),
        ({"in__x": torch.full((3, 6), torch.nan)}, "computed holds 12 NaN of 12"),
        ({"out__extra": torch.zeros(2)}, "FAIL  out.extra  not computed"),
        ({"in__x": None}, "missing tensor in.x"),
        ({"sd__weight": None}, "missing tensor sd.weight"),
        ({"out__y": None}, "missing tensor out.y"),
        ({"in__x": torch.zeros(3, 7)}, "RuntimeError: "),
    ],
)
def test_faults_are_one_line(
    changes: dict[str, Tensor | None], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = outcome(capsys, made(tmp_path / "f.safetensors", **changes), made(tmp_path / "good.safetensors"))
    assert code == 1
    assert len([line for line in lines if says in line and "FAIL" in line]) == 1
    assert not any("Traceback" in line for line in lines)
    assert lines[-1].endswith("in 2 files, 1 file failed")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"scael": 1}, "unknown option 'scael' in config; known: kind, note, rows, scale"),
        ({"rows": [{"row": 0, "big": True}]}, "4 entries computed, 1 in the file"),
        ({"rows": [{"row": i, "big": i != 3} for i in range(4)]}, "True computed, False in the file at [3].big"),
        ({"rows": [{"row": i, "big": 1} for i in range(4)]}, "True computed, 1 in the file at [0].big"),
    ],
)
def test_config_results_and_options(
    config: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = outcome(capsys, made(tmp_path / "f.safetensors", config))
    assert code == 1 and len([line for line in lines if says in line]) == 1


def test_older_kind_and_notes_in_the_config_are_allowed(tmp_path: Path) -> None:
    assert run([made(tmp_path / "f.safetensors", {"kind": "older_name", "note": "x"})], KINDS) == 0


def test_unreadable_files_leave_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = made(tmp_path / "good.safetensors")
    truncated = tmp_path / "cut.safetensors"
    truncated.write_bytes(good.read_bytes()[:-40])
    strange = tmp_path / "strange.safetensors"
    save_file({"out.y": torch.zeros(1)}, strange, metadata={"kind": "quadratic", "config": "{}"})
    bare = tmp_path / "bare.safetensors"
    save_file({"out.y": torch.zeros(1)}, bare)
    broken = tmp_path / "broken.safetensors"
    save_file({"out.y": torch.zeros(1)}, broken, metadata={"kind": "linear", "config": "{"})
    listed = tmp_path / "listed.safetensors"
    save_file({"out.y": torch.zeros(1)}, listed, metadata={"kind": "linear", "config": "[]"})
    (tmp_path / "table.json").write_text("{]")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    files = [truncated, strange, bare, broken, listed, *(tmp_path / n for n in ("table.json", "other.json"))]
    files += [tmp_path / "notes.txt", tmp_path / "absent.safetensors", tmp_path / "empty", good]
    code, lines = outcome(capsys, *files)
    faults = dict(line.split("/")[-1].split(": ", 1) for line in lines if line.startswith("FAIL"))
    assert code == 1 and len(faults) == 10
    assert faults["cut.safetensors"].startswith("cannot be read: ")
    assert faults["strange.safetensors"] == "unknown kind 'quadratic'; known: linear, linear_big, table"
    assert faults["bare.safetensors"] == "broken metadata: no config and no kind"
    assert faults["broken.safetensors"].startswith("broken metadata: config is not JSON")
    assert faults["listed.safetensors"] == "broken metadata: config is a JSON list, not an object"
    assert faults["table.json"].startswith("cannot be read: ")
    assert faults["other.json"].startswith("unknown kind: the name begins with none of linear")
    assert faults["notes.txt"].startswith("not a reference file")
    assert faults["absent.safetensors"] == "no such file" and faults["empty"] == "a folder without reference files"
    assert "pass  out.y" in "\n".join(lines) and lines[-1] == "verified: 4 of 4 tensors in 11 files, 10 files failed"


def test_a_file_without_results_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.safetensors"
    save_file({"in.x": torch.zeros(1)}, path, metadata={"kind": "idle", "config": "{}"})
    assert run([path], {"idle": Kind(lambda file: {}, 0.0)}) == 1
    assert "nothing to compare" in capsys.readouterr().out


def test_folder_means_its_files_without_readme_and_subfolders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "b.safetensors")
    made(tmp_path / "a.safetensors")
    (tmp_path / "README.md").write_text("# not a reference file")
    (tmp_path / "released").mkdir()
    (tmp_path / "released" / "notes.txt").write_text("x")
    code, lines = outcome(capsys, tmp_path)
    assert code == 0 and lines[-1] == "verified: 8 of 8 tensors in 2 files"


def test_json_kind_is_the_longest_beginning_of_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table_of_sums.json"
    path.write_text(json.dumps({"rows": [[1, 2], [3, 4]], "sums": [3, 7]}))
    assert ReferenceFile.read(path, ["table", "table_of", "t"]).kind == "table_of"
    assert run([path], KINDS) == 0
    path.write_text(json.dumps({"rows": [[1, 2], [3, 4]], "sums": [3, 8]}))
    assert run([path], KINDS) == 1
    assert "7 computed, 8 in the file at [1]" in capsys.readouterr().out


def test_result_patterns_reach_every_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`plain.*.pairs` are results inside a list whose other keys are inputs; each must be computed."""
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({"plain": [{"n": 2, "pairs": [0, 1]}, {"n": 3, "pairs": [0, 1, 2]}], "loss": 0.3}))

    def compute(file: ReferenceFile) -> dict[str, Any]:
        return {"config.plain": [{"pairs": list(range(c["n"]))} for c in file.config["plain"][:limit]]}

    kind = Kind(compute, 0.0, results=("plain.*.pairs",))
    limit = 2
    assert run([path], {"grid": kind}) == 0
    limit = 1
    assert run([path], {"grid": kind}) == 1
    assert "FAIL  config.plain.1.pairs  not computed" in capsys.readouterr().out
    floats = Kind(lambda file: {"config.loss": 0.1 + 0.2}, 0.0, results=("loss",))
    assert run([path], {"grid": floats}) == 1
    assert run([path], {"grid": Kind(floats.compute, 0.0, results=("loss",), config_tolerance=1e-12)}) == 0


def test_sets_compare_lists_without_order(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"trainable": ["b", "a"]}))
    assert run([path], {"names": Kind(lambda file: {"config.trainable": {"a", "b"}}, 0.0, ("trainable",))}) == 0
    assert run([path], {"names": Kind(lambda file: {"config.trainable": {"a", "c"}}, 0.0, ("trainable",))}) == 1


def test_checks_stand_for_tensors_and_for_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.safetensors"
    save_file({"out.weight": torch.ones(2)}, path, metadata={"kind": "solve", "config": "{}"})
    good = {"out.weight": Check(1e-4, 1e-3, "residual of the solve"), "counts": Check(0, 0)}
    assert run([path], {"solve": Kind(lambda file: good, 0.0)}) == 0
    text = capsys.readouterr().out
    assert "(residual of the solve)" in text and "verified: 2 of 2" in text
    for bad in (Check(2e-3, 1e-3), Check(float("nan"), 1e-3)):
        assert run([path], {"solve": Kind(lambda file, bad=bad: good | {"counts": bad}, 0.0)}) == 1


def test_tolerance_parts(tmp_path: Path) -> None:
    """The floor stands in for a small tensor's own scale, the absolute part is added; zeros are exact without them."""
    path = tmp_path / "f.safetensors"
    tensors = {"out.y": torch.zeros(2), "grad.big": torch.full((2,), 100.0), "grad.inf": torch.tensor([torch.inf, 1])}
    save_file(tensors, path, metadata={"kind": "k", "config": "{}"})
    values = {"out.y": torch.tensor([0, 0.05]), "grad.big": tensors["grad.big"], "grad.inf": tensors["grad.inf"]}
    for tolerance, code in [
        (Tolerance(1e-3), 1),
        (Tolerance(1e-3, absolute=0.06), 0),
        (Tolerance(1e-3, absolute=0.04), 1),
        (lambda file, key: Tolerance(1e-3, floor=file.largest("grad.big")), 0),
        (lambda file, key: Tolerance(1e-4, floor=file.largest("grad.big")), 1),
        (lambda file, key: 10 if key == "out.y" else 1e-5, 1),
    ]:
        assert run([path], {"k": Kind(lambda file: values, tolerance)}) == code


def test_read_gives_the_parts(tmp_path: Path) -> None:
    file = ReferenceFile.read(made(tmp_path / "f.safetensors"), KINDS)
    assert set(file.state) == {"weight"} and set(file.inputs) == {"x", "cotangent"}
    assert set(file.outputs) == {"y", "sign"} and set(file.gradients) == {"x"}
    with pytest.raises(UserError, match=r"missing tensor grad\.w"):
        file.gradients["w"]
    with pytest.raises(UserError, match="missing option depth"):
        file.config["depth"]


def test_check_options_names_the_place() -> None:
    check_options({"a": 1}, {"a", "b"})
    with pytest.raises(UserError, match=r"unknown option 'c' in cases\[0\]; known: a, b"):
        check_options({"a": 1, "c": 2}, {"a", "b"}, "cases[0]")


def test_pth_content_is_read_safely(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"a": [1, 2]}, tmp_path / "param_req_good.pth")
    torch.save({"a": Evil()}, tmp_path / "param_req_evil.pth")
    kind = Kind(lambda file: {"counts": Check(abs(sum(file.content["a"]) - 3), 0)}, 0.0)
    assert run([tmp_path / "param_req_good.pth"], {"param_req": kind}) == 0
    assert run([tmp_path / "param_req_evil.pth"], {"param_req": kind}) == 1
    assert not (tmp_path / "ran").exists()
    assert "param_req_evil.pth: " in capsys.readouterr().out
