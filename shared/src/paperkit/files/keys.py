"""A state dict against a model: which keys are missing, unexpected, or of another shape."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from paperkit.errors import UserError

KeyMap = Mapping[str, str | None] | Callable[[str], str | None]


def first_few(names: list[str], count: int = 4) -> str:
    """The first few of `names`, each cut to a sane length, and how many more there are."""
    shown = ", ".join(name if len(name) <= 100 else name[:97] + "..." for name in names[:count])
    return shown + (f" and {len(names) - count} more" if len(names) > count else "")


@dataclass
class KeyReport:
    """What keeps a state dict from being exactly the model's.

    Attributes:
        missing: keys of the model that the state lacks. unexpected: keys of the state that the model lacks, as the
            file names them. misshapen: keys of both whose shape or kind of number differs, each with both:
            `head.weight (file 1000x192, model 10x192)`.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether there is nothing to report."""
        return not (self.missing or self.unexpected or self.misshapen)

    def message(self) -> str:
        """One line with the counts and the first few keys of each kind; `every key fits` if there are none."""
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("misshapen", self.misshapen))
        return "; ".join(f"{len(keys)} {kind}: {first_few(keys)}" for kind, keys in kinds if keys) or "every key fits"


def _compare(
    model: nn.Module, state: Mapping[str, Tensor], key_map: KeyMap | None
) -> tuple[KeyReport, dict[str, Tensor]]:
    """The report, and the part of `state` that fits under the model's own names."""
    report, fitting = KeyReport(), {}
    wanted = model.state_dict()
    rename = key_map.get if isinstance(key_map, Mapping) else key_map
    given: dict[str, tuple[str, Tensor]] = {}
    for key, value in state.items():
        name = key if rename is None or (isinstance(key_map, Mapping) and key not in key_map) else rename(key)
        if name is None:
            continue
        if name in given:
            raise ValueError(f"the key map sends both {given[name][0]} and {key} to {name}")
        given[name] = (key, value)
    for name, (key, value) in given.items():
        target = wanted.get(name)
        if not isinstance(target, Tensor):
            report.unexpected.append(key)
        elif value.shape != target.shape or not torch.can_cast(value.dtype, target.dtype):
            report.misshapen.append(f"{name} (file {_describe(value, target)}, model {_describe(target, value)})")
        else:
            fitting[name] = value
    report.missing = [name for name in wanted if name not in given and not _is_late_counter(name, given)]
    return report, fitting


def _describe(tensor: Tensor, other: Tensor) -> str:
    """Shape as `1000x192`; the type as well if that is what differs from `other`."""
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return shape if tensor.shape != other.shape else f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


def _is_late_counter(name: str, given: Mapping[str, object]) -> bool:
    """BatchNorm's batch counter came after many weights were released; torch, too, starts it at 0 without a word."""
    return name.endswith("num_batches_tracked") and name.replace("num_batches_tracked", "running_mean") in given


def load_report(model: nn.Module, state: Mapping[str, Tensor], key_map: KeyMap | None = None) -> KeyReport:
    """Copies every tensor of `state` that fits into `model` and reports the rest.

    Args:
        model: changed in place. state: key -> tensor, as `read_weights` gives it. key_map: the file's key -> the
            model's, or None for a key to leave out knowingly. A mapping leaves the keys that it does not have as they
            are; a function is asked for each.
    """
    report, fitting = _compare(model, state, key_map)
    model.load_state_dict(fitting, strict=False)
    return report


def load_strict(model: nn.Module, state: Mapping[str, Tensor], source: str, key_map: KeyMap | None = None) -> None:
    """Copies `state` into `model` if every key fits, and changes nothing otherwise.

    Args:
        model, state, key_map: as in `load_report`.
        source: where the state came from, for the error.

    Raises:
        UserError: with the missing, unexpected and misshapen keys.
    """
    report, fitting = _compare(model, state, key_map)
    if not report.fits:
        raise UserError(f"{source} does not fit {type(model).__name__}: {report.message()}")
    model.load_state_dict(fitting, strict=False)
