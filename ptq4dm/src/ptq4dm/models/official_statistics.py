"""Noise statistics as the authors' scripts keep them: `kt.npy`, `t_std_dict.npy`, `idx_bias.npy` in one folder.

Two of them are pickled tables of time step -> number inside an npy file; `paperkit.files.array_pickles` reads them.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.array_pickles import load_arrays
from paperkit.files.atomic import atomic_file
from ptq4dm.method.noise_statistics import NoiseStatistics, StatisticsAccumulator
from ptq4dm.models.official_quantized import read_pairs

SLOPES, SPREADS, BIAS = "kt.npy", "t_std_dict.npy", "idx_bias.npy"
LARGEST = 64 << 20  # bytes of one file; theirs have kilobytes


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no file {path}; the authors' statistics are {SLOPES}, {SPREADS} and {BIAS} in one folder")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} has {path.stat().st_size} bytes; statistics of the authors have kilobytes")
    try:
        with path.open("rb") as file:
            version = npy.read_magic(file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            _, _, dtype = header(file)
            if not dtype.hasobject:
                file.seek(0)
                return npy.read_array(file, allow_pickle=False)
            (found,) = load_arrays(file).content
            return found
    except Exception as error:  # numpy, pickle and torch raise nearly every class on a damaged file
        raise UserError(f"{path} is no npy file of the authors' statistics: {str(error)[:200]}") from error


def _table(path: Path) -> dict[int, float]:
    """Time step -> number."""
    found = _read(path)
    try:
        table = {int(t): float(value) for t, value in found.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} holds no table of time step -> number") from error
    if wrong := [t for t, value in table.items() if not math.isfinite(value)]:
        raise UserError(f"{path}: the number of time step {wrong[0]} is {table[wrong[0]]}")
    return table


def read_official(folder: str | Path) -> NoiseStatistics:
    """The three files of a folder; what they do not say (identity, correlation, SNR, means) stays unknown.

    Raises:
        UserError: a file is missing, damaged, wants anything but numbers, or does not fit the others.
    """
    folder = Path(folder)
    slopes, spreads, bias = _table(folder / SLOPES), _table(folder / SPREADS), _read(folder / BIAS)
    steps = sorted(spreads)
    if sorted(slopes) != steps or getattr(bias, "ndim", 0) != 2 or len(bias) != len(steps):
        raise UserError(
            f"{folder}: {len(slopes)} slopes, {len(steps)} spreads and a bias {np.shape(bias)}; each step needs all"
        )
    if bias.dtype.kind != "f" or not np.isfinite(bias).all():
        raise UserError(f"{folder / BIAS} holds {bias.dtype} with NaN or infinite values, or no numbers")

    def column(table: dict[int, float]) -> Tensor:
        return torch.tensor([table[t] for t in steps], dtype=torch.float64)

    unknown = torch.zeros(len(steps), dtype=torch.float64)
    return NoiseStatistics(
        torch.tensor(steps), column(slopes), unknown, torch.from_numpy(bias.astype(np.float64)), column(spreads),
        unknown.clone(), identity={"steps": len(steps)},
    )  # fmt: skip


def write_official(folder: str | Path, statistics: NoiseStatistics) -> None:
    """Writes the three files as the authors' sampler reads them.

    Raises:
        UserError: `cannot write <path>`.
    """
    steps = statistics.timesteps.tolist()
    contents: dict[str, Any] = {
        SLOPES: np.array(dict(zip(steps, statistics.k.tolist(), strict=True)), dtype=object),
        SPREADS: np.array(dict(zip(steps, statistics.residual_std.float().unbind(), strict=True)), dtype=object),
        BIAS: statistics.bias.numpy(),
    }
    for name, content in contents.items():
        with atomic_file(Path(folder) / name) as file:
            npy.write_array(file, content, allow_pickle=content.dtype.hasobject)


def statistics_of_pairs(path: str | Path, trust_pickle: bool = False) -> NoiseStatistics:
    """Statistics of `data_error_t_*.pth`, the authors' list of predictions and errors.

    Raises:
        UserError: unreadable, or something else.
    """
    eps, delta, t = read_pairs(path, trust_pickle)
    sums = StatisticsAccumulator()
    for timestep in t.unique().tolist():
        exact = eps[t == timestep].double()
        sums.add(int(timestep), exact, exact + delta[t == timestep].double())
    return sums.finish({"steps": len(t.unique())})
