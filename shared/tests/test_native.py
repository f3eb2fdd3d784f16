"""Kernels in C++: compiled once, kept whole, switched off, and missed with one warning."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from paperkit import native

SOURCE = """
extern "C" long counted(long threads) {
    long sum = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : sum)
    for (long i = 0; i < 1000; ++i) sum += i;
    return sum;
}
"""
compiles = pytest.mark.skipif(
    not any(map(native.shutil.which, native.COMPILERS)), reason="needs a C++ compiler on the PATH"
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, and a process that has loaded nothing."""
    for name in ("CXX", "PAPERKIT_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(native.tempfile, "tempdir", None)
    native._library.cache_clear()
    (tmp_path / "sum.cpp").write_text(SOURCE)
    yield tmp_path
    native._library.cache_clear()


def kept(place: Path) -> list[Path]:
    return sorted(place.glob("cache/paperkit/*.[sd][oy]*"))


def never(*_: object) -> str:
    raise AssertionError("something was compiled")


@compiles
def test_a_library_is_compiled_once_for_all_processes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = native.library("paper-sum", [place / "sum.cpp"], flags=["-march=native"])
    assert library is not None and library.counted(1) == library.counted(2) == 499500
    assert native.library("paper-sum", [place / "sum.cpp"], flags=["-march=native"]) is library
    (file,) = kept(place)
    assert file.name.startswith("paper-sum-") and {p.suffix for p in file.parent.iterdir()} == {".sha256", file.suffix}
    native._library.cache_clear()
    monkeypatch.setattr(native, "_compile", never)
    assert native.library("paper-sum", [place / "sum.cpp"], flags=["-march=native"]) is not None


@compiles
def test_another_source_flag_or_processor_is_another_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "sum.h").write_text("")
    for flags in ((), ("-DA",), ("-march=native",)):
        native.library("paper-sum", [place / "sum.cpp"], flags=flags)
    native.library("paper-sum", [place / "sum.cpp", place / "sum.h"])
    assert len(kept(place)) == 4
    monkeypatch.setattr(native, "cpu_features", lambda: frozenset({"another"}))
    native._library.cache_clear()
    native.library("paper-sum", [place / "sum.cpp"])
    assert len(kept(place)) == 4
    native.library("paper-sum", [place / "sum.cpp"], flags=["-march=native"])
    assert len(kept(place)) == 5


@compiles
@pytest.mark.parametrize("size", [0, 1000, -1])
def test_half_a_library_is_compiled_again(size: int, place: Path) -> None:
    compiler = native._compiler()
    sources = (place / "sum.cpp",)
    file = place / "cache" / "paperkit" / f"paper-sum-{native._key(compiler, sources, ())}.so"
    file.parent.mkdir(mode=0o700, parents=True)
    native._compile(compiler, sources, (), file)
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    assert native.library("paper-sum", sources) is not None
    if sys.platform == "linux":
        assert file.stat().st_size == len(whole)


@compiles
def test_processes_that_compile_at_once_all_get_it(place: Path) -> None:
    code = "import sys, pathlib; from paperkit.native import library as l; "
    code += "print(l('paper-sum', [pathlib.Path(sys.argv[1])]).counted(1))"
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(place / "sum.cpp")], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=120)[0] for process in started] == ["499500\n"] * 3
    assert len(list((place / "cache" / "paperkit").iterdir())) == 2


@compiles
@pytest.mark.parametrize("wrong", ["a file", "others may write", "a relative name"])
def test_without_a_cache_of_ones_own_a_temporary_folder_serves(
    wrong: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong == "a file":
        (place / "cache").write_text("")
    elif wrong == "others may write":
        (place / "cache" / "paperkit").mkdir(parents=True)
        (place / "cache" / "paperkit").chmod(0o777)
    else:
        monkeypatch.chdir(place)
        monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert native.library("paper-sum", [place / "sum.cpp"]) is not None
    assert kept(place) == []
    folder = place / f"paperkit-{os.getuid()}"
    assert len(list(folder.iterdir())) == 2 and folder.stat().st_mode & 0o777 == 0o700


@compiles
def test_no_folder_is_taken_that_others_may_write_to(place: Path) -> None:
    (place / "cache").write_text("")
    (place / "elsewhere").mkdir()
    (place / f"paperkit-{os.getuid()}").symlink_to(place / "elsewhere")
    with pytest.warns(UserWarning, match=r"^paper-sum: no compiled kernel \(no folder of one's own"):
        assert native.library("paper-sum", [place / "sum.cpp"]) is None


@pytest.mark.parametrize(
    ("compiler", "says"),
    [
        ("/nowhere/c++", r"/nowhere/c\+\+: No such file or directory"),
        ("false", "false: .*"),
        (None, r"none of g\+\+, clang\+\+, c\+\+ is on the PATH, and CXX names no compiler"),
    ],
)
def test_no_compiler_is_one_warning(
    compiler: str | None, says: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler is None:
        monkeypatch.setenv("PATH", str(place))
    else:
        monkeypatch.setenv("CXX", compiler)
    line = rf"^paper-sum: no compiled kernel \({says}\); the plain PyTorch path is taken$"
    with pytest.warns(UserWarning, match=line) as found:
        assert native.library("paper-sum", [place / "sum.cpp"]) is None
    assert len(found) == 1
    monkeypatch.setattr(native, "_compiler", never)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.library("paper-sum", [place / "sum.cpp"]) is None


@compiles
def test_a_source_that_does_not_compile_is_one_line(place: Path) -> None:
    (place / "sum.cpp").write_text("\n\nnonsense\n")
    with pytest.warns(
        UserWarning, match=r"^paper-sum: no compiled kernel \(\S+: .*sum.cpp:3:\d+: error: .*taken$"
    ) as found:
        assert native.library("paper-sum", [place / "sum.cpp"]) is None
    assert len(found) == 1 and "\n" not in str(found[0].message) and kept(place) == []


def test_it_can_be_switched_off_in_silence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERKIT_NATIVE", "0")
    monkeypatch.setattr(native, "_compiler", never)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.library("paper-sum", [place / "sum.cpp"]) is None


def test_features_are_linux_names_in_lower_case() -> None:
    features = native.cpu_features()
    assert features == frozenset(map(str.lower, features))
    assert features or not Path("/proc/cpuinfo").exists()
