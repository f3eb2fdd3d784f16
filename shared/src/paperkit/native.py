"""A paper's own C++ kernels, compiled on first use by the machine's compiler and kept in the user's cache.

Sources have a plain C interface: pointers of tensors (`Tensor.data_ptr()`) and sizes, called through ctypes, which
releases Python's lock. So nothing of torch is compiled, and a library takes about a second and not half a minute.
Threads are OpenMP's where the compiler has it. On Linux, g++ finds the copy of libgomp that torch has loaded already
and shares its threads; a kernel takes their number as an argument (`torch.get_num_threads()`), because OpenMP's own
default is not always torch's.

`PAPERKIT_NATIVE=0` switches every library off; callers then take their plain PyTorch path.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

FLAGS = ("-O3", "-shared", "-fPIC", "-std=c++17")
THREADS = ("-fopenmp",)
COMPILERS = ("g++", "clang++", "c++")
LONGEST = 300
"""Seconds that a compiler may take."""


def library(name: str, sources: Sequence[Path], *, flags: Sequence[str] = ()) -> ctypes.CDLL | None:
    """The shared library of C++ sources; None where it cannot be had, and the plain PyTorch path is to be taken.

    The first call of a process compiles it or finds it compiled (key: sources, flags, compiler, machine, and with a
    `native` flag the processor's features); later calls return the same object. A failure is one warning of one line,
    and is not tried again in this process. Nothing is said where `PAPERKIT_NATIVE=0`.

    Args:
        name: paper and kernel, `paper-kernel`: begins the file's name and the warning.
        sources: .cpp files, shipped beside the Python module (package data). What they include from the same folder
            belongs into the list as well: a .h is hashed and not compiled.
        flags: further ones, such as `-march=native`. The environment variable CXX names a compiler other than the
            first of g++, clang++ and c++ on the PATH.
    """
    if os.environ.get("PAPERKIT_NATIVE") == "0":
        return None
    return _library(name, tuple(sources), tuple(flags))


@functools.cache
def cpu_features() -> frozenset[str]:
    """The processor's features as Linux names them, in lower case (`avx2`, `avx512_vpopcntdq`); elsewhere none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return frozenset(value.lower().split())
    return frozenset()


@functools.cache
def _library(name: str, sources: tuple[Path, ...], flags: tuple[str, ...]) -> ctypes.CDLL | None:
    reason = "no folder of one's own to keep it in"
    try:
        compiler = _compiler()
        file = f"{name}-{_key(compiler, sources, flags)}{'.dylib' if platform.system() == 'Darwin' else '.so'}"
        for folder in _folders():
            try:
                if not _is_whole(folder / file):
                    _compile(compiler, sources, flags, folder / file)
                return ctypes.CDLL(str(folder / file))
            except OSError as error:  # a full disk, or one from which nothing is executed
                reason = str(error)
    except (OSError, RuntimeError) as error:
        reason = str(error)
    reason = " ".join(reason.split())[:300]
    warnings.warn(f"{name}: no compiled kernel ({reason}); the plain PyTorch path is taken", stacklevel=3)
    return None


def _compiler() -> list[str]:
    """The compiler's command, as it stands in CXX or found."""
    if named := shlex.split(os.environ.get("CXX", "")):
        return named
    if found := next(filter(None, map(shutil.which, COMPILERS)), None):
        return [found]
    raise RuntimeError(f"none of {', '.join(COMPILERS)} is on the PATH, and CXX names no compiler")


def _key(compiler: Sequence[str], sources: Sequence[Path], flags: Sequence[str]) -> str:
    """Twenty digits that change with whatever changes the library."""
    features = sorted(cpu_features()) if any("native" in flag for flag in flags) else []
    parts = [_run([*compiler, "--version"]), *FLAGS, *THREADS, *flags, platform.system(), platform.machine(), *features]
    parts += [hashlib.sha256(source.read_bytes()).hexdigest() for source in sources]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _folders() -> Iterator[Path]:
    """Where libraries are kept: the user's cache, else a temporary folder; none that another user could write to."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    temporary = Path(tempfile.gettempdir()) / f"paperkit-{os.getuid()}"
    for folder in (Path(cache) / "paperkit" if os.path.isabs(cache) else temporary, temporary):
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.lstat()
            own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
            if own and os.access(folder, os.W_OK | os.X_OK):
                yield folder


def _is_whole(path: Path) -> bool:
    """Whether a library is as it was written: half of one would not fail to load but end the process."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _digest_of(path).read_text(encoding="ascii")
    except (OSError, ValueError):
        return False


def _digest_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _compile(compiler: Sequence[str], sources: Sequence[Path], flags: Sequence[str], path: Path) -> None:
    """Compiles to `path`, which appears whole: several processes may do so at once, and the last one's stays."""
    compiled = [str(source) for source in sources if source.suffix != ".h"]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-") as folder:
        made = Path(folder) / path.name
        command = [*compiler, *FLAGS, *flags, *compiled, "-o", str(made)]
        try:
            _run([*command, *THREADS])
        except RuntimeError:  # a compiler without OpenMP: its pragmas are passed over, and one thread works
            _run(command)
        _digest_of(made).write_text(hashlib.sha256(made.read_bytes()).hexdigest(), encoding="ascii")
        for file in (_digest_of(made), made):
            os.replace(file, path.parent / file.name)


def _run(command: Sequence[str]) -> str:
    """What a command prints.

    Raises:
        RuntimeError: it is missing, fails or takes too long; with its first line that names an error.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LONGEST)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{command[0]}: {getattr(error, 'strerror', None) or error}") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise RuntimeError(f"{command[0]}: {next((line for line in lines if 'error' in line), lines[0])}")
    return done.stdout
