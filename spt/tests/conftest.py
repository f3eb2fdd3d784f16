"""Runs that several files use, trained once for the whole suite."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest
from made import ade20k_world, digits_run, lists_world


def _once(name: str, make: Callable[[Path], object], factory: pytest.TempPathFactory, worker: str) -> Path:
    """A folder that `make` has filled: by one process of the suite, while the others wait for it."""
    base = factory.getbasetemp() if worker == "master" else factory.getbasetemp().parent
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def lists(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """VTAB-1k, a backbone file and one finished run, `runs/spt/one`. Tests write runs of other names."""
    return _once("lists", lists_world, tmp_path_factory, worker_id)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """ADE20K, a trunk file and one finished run, `runs/spt/one`. Tests write runs of other names."""
    return _once("scenes", ade20k_world, tmp_path_factory, worker_id)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One finished run of the embedded experiment, which no test changes."""
    return _once("digits", digits_run, tmp_path_factory, worker_id) / "runs" / "spt" / "one"
