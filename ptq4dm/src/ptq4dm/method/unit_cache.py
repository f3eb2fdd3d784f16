"""What a part of a network gets and gives, kept for all calibration records (section 4 of the method).

The parts are the units of reconstruction. Their inputs and targets may be larger than memory, so they are kept on the
network's device, in the host's memory or in a file, in float32 or in half of it, and counted before anything starts.

Shapes: N records.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from ptq4dm.method.calibration import Records, predict

Place = Literal["device", "host", "disk"]
RECORDS_AT_A_TIME = 32


@dataclass(frozen=True)
class Unit:
    """A part of a network: its full name, and how many numbers one record's inputs and outputs are."""

    name: str
    numbers: int


class _Seen(Exception):  # noqa: N818  # it is no error: the rest of a forward pass is not needed
    pass


Call = tuple[tuple[Any, ...], dict[str, Any]]


@torch.no_grad()
def traced_units(unet: nn.Module, names: list[str], records: Records) -> list[Unit]:
    """Those units that a forward pass reaches, in the order in which it does, with their sizes.

    Module order would not do: diffusers lists the middle block of a U-Net after the upward ones.
    """
    device = next(unet.parameters()).device
    found: dict[str, Unit] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
            given = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
            numbers = sum(value.numel() for value in [*given, _tensor(out)])
            found.setdefault(name, Unit(name, numbers))

        return hook

    hooks = [unet.get_submodule(name).register_forward_hook(note(name), with_kwargs=True) for name in names]
    try:
        predict(unet, records[:1].to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def cache_bytes(units: list[Unit], records: int, dtype: torch.dtype) -> int:
    """The most that the cache of one unit takes: one is there at a time."""
    return max((unit.numbers for unit in units), default=0) * records * dtype.itemsize


def check_room(needed: int, place: Place, device: torch.device, folder: Path | None) -> None:
    """Raises a UserError if the cache does not fit into nine tenths of what is free now."""
    free: int | None = None
    if place == "disk":
        free = shutil.disk_usage(folder or ".").free
    elif place == "host" or device.type == "cpu":
        free = _free_memory()
    elif device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    if free is not None and needed > 0.9 * free:
        raise UserError(
            f"reconstruction keeps up to {needed / 1e9:.2f} GB of inputs and outputs on {place}, where "
            f"{free / 1e9:.2f} GB are free; take fewer records, bfloat16, or another place (device, host, disk)"
        )


def _free_memory() -> int | None:
    """Bytes that Linux can give without swapping; None on other systems."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


@dataclass
class UnitCache:
    """Inputs and targets of one unit for all records.

    Args:
        place: where they are kept. folder: of the file, where that is on disk.
        dtype: of what is kept; what it gives is in the type that the unit got.
        device: of what it gives.
    """

    place: Place
    dtype: torch.dtype
    device: torch.device
    folder: Path | None = None
    _kept: dict[str, Tensor] = field(default_factory=dict)
    _given: dict[str, torch.dtype] = field(default_factory=dict)
    _constant: Call = ((), {})
    _files: list[Path] = field(default_factory=list)

    @torch.no_grad()
    def fill(self, unet: nn.Module, unit: str, records: Records, inputs: bool, target: bool) -> None:
        """Runs the network as it is switched, as far as the unit, and keeps what the unit gets and gives."""
        module = unet.get_submodule(unit)
        seen: list[tuple[Call, Tensor | None]] = []

        def before(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.append(((args, named), None))
            raise _Seen

        def behind(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
            seen.append(((args, named), _tensor(out)))
            raise _Seen

        if target:
            hook = module.register_forward_hook(behind, with_kwargs=True)
        else:
            hook = module.register_forward_pre_hook(before, with_kwargs=True)
        try:
            for first in range(0, len(records), RECORDS_AT_A_TIME):
                batch = records[first : first + RECORDS_AT_A_TIME]
                try:
                    predict(unet, batch.to(self.device))
                except _Seen:
                    call, out = seen.pop()
                    if inputs:
                        self._keep_call(call, first, len(batch), len(records))
                    if out is not None:
                        self._keep("target", out, first, len(records))
        finally:
            hook.remove()

    def _keep_call(self, call: Call, first: int, batch: int, total: int) -> None:
        args, named = call

        def keep(key: int | str, value: Any) -> Any:
            if not (isinstance(value, Tensor) and value.dim() and len(value) == batch):
                return value
            self._keep(f"in.{key}", value, first, total)
            return None

        self._constant = tuple(keep(i, v) for i, v in enumerate(args)), {key: keep(key, v) for key, v in named.items()}

    def _keep(self, name: str, value: Tensor, first: int, total: int) -> None:
        if name not in self._kept:
            self._given[name] = value.dtype
            self._kept[name] = self._allocate(name, (total, *value.shape[1:]), value)
        self._kept[name][first : first + len(value)] = value

    def _allocate(self, name: str, shape: tuple[int, ...], value: Tensor) -> Tensor:
        dtype = self.dtype if value.is_floating_point() else value.dtype
        if self.place != "disk":
            return torch.empty(shape, dtype=dtype, device=self.device if self.place == "device" else "cpu")
        assert self.folder is not None
        path = self.folder / f"cache-{name}.tmp-{os.getpid()}"
        self._files.append(path)
        count = torch.Size(shape).numel()
        try:
            with open(path, "wb") as file:
                if hasattr(os, "posix_fallocate"):  # a full disk is told now and not by a signal at some write
                    os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)

    def call(self, index: Tensor) -> Call:
        """The unit's arguments for some records."""
        args, named = self._constant
        kept = {name: self._rows(name, index) for name in self._kept if name != "target"}
        return (
            tuple(kept.get(f"in.{i}", value) for i, value in enumerate(args)),
            {key: kept.get(f"in.{key}", value) for key, value in named.items()},
        )

    def target(self, index: Tensor) -> Tensor:
        """What the unit is to give for some records."""
        return self._rows("target", index)

    def _rows(self, name: str, index: Tensor) -> Tensor:
        kept = self._kept[name]
        return kept[index.to(kept.device)].to(self.device, self._given[name])

    def close(self) -> None:
        """Gives the memory back, and removes the files."""
        self._kept.clear()
        for path in self._files:
            path.unlink(missing_ok=True)
        self._files.clear()


@contextmanager
def unit_cache(place: Place, dtype: torch.dtype, device: torch.device, folder: Path | None) -> Iterator[UnitCache]:
    """A cache that is gone after the block."""
    cache = UnitCache(place, dtype, device, folder)
    try:
        yield cache
    finally:
        cache.close()


def _tensor(out: Any) -> Tensor:
    found = out if isinstance(out, Tensor) else out[0]
    assert isinstance(found, Tensor)
    return found
