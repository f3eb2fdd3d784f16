"""Calibration data: what a denoising network was called with along its own sampling (section 3 of the method).

Shapes: N records, B batch, C channels, H height, W width, L context tokens, D context width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.weights import read_safetensors, save_weights


@dataclass(frozen=True)
class Records:
    """Inputs of single calls: `x` (N, C, H, W), `t` (N,), `context` (N, L, D) of a conditional network.

    `labels` (N,) are class numbers of a network that embeds them itself (`num_class_embeds` of diffusers).
    """

    x: Tensor
    t: Tensor
    context: Tensor | None = None
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in self.tensors().items():
            if len(tensor) != len(self.x):
                raise UserError(f"calibration records: {len(self.x)} of x and {len(tensor)} of {name}")

    def tensors(self) -> dict[str, Tensor]:
        """By name, those that are there."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice | Tensor) -> "Records":
        return Records(**{name: tensor[index] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str) -> "Records":
        """The same records elsewhere."""
        return Records(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def shuffled(self, count: int, seed: int = 0) -> "Records":
        """`count` records drawn without replacement, the same for the same seed.

        Raises:
            UserError: there are fewer.
        """
        if count > len(self):
            raise UserError(f"{len(self)} calibration records; {count} are needed")
        return self[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]]

    def save(self, path: str | Path) -> None:
        """Writes them as safetensors, whole or not at all."""
        save_weights(path, self.tensors())

    @classmethod
    def load(cls, path: str | Path) -> "Records":
        """Reads what `save` wrote.

        Raises:
            UserError: unreadable, or not such a file.
        """
        tensors, _ = read_safetensors(path)
        known = {field.name for field in fields(cls)}
        if not {"x", "t"} <= tensors.keys() <= known:
            raise UserError(f"{path} holds {', '.join(sorted(tensors))[:200]}; calibration records are x, t, context")
        return cls(**tensors)


def concatenated(parts: Sequence[Records]) -> Records:
    """All records in one."""
    return Records(**{name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()})


def predict(unet: nn.Module, records: Records) -> Tensor:
    """One call of a network on all records: the noise prediction (N, C, H, W).

    Networks of diffusers are called by their argument names; any other as `unet(x, t)` or `unet(x, t, context)`.
    """
    from diffusers import ModelMixin  # late: it takes seconds

    if isinstance(unet, ModelMixin):
        named: dict[str, Any] = {}
        if records.context is not None:
            named["encoder_hidden_states"] = records.context
        if records.labels is not None:
            named["class_labels"] = records.labels
        out = unet(records.x, records.t, **named)
    else:
        out = unet(records.x, records.t, *[more for more in (records.context, records.labels) if more is not None])
    return out if isinstance(out, Tensor) else out[0]


class InputRecorder:
    """Within a `with` block, keeps what a network is called with; both halves of a guided batch are records.

    with InputRecorder(pipeline.unet) as recorder:
        pipeline(...)
    records = recorder.records()

    They are kept on the CPU. `keep(call)` says which calls are kept, counted from 0: all of them by default.
    """

    def __init__(self, unet: nn.Module, keep: Callable[[int], bool] = lambda call: True) -> None:
        self.unet, self.keep = unet, keep
        self._parts: list[Records] = []
        self._calls = 0

    def __enter__(self) -> "InputRecorder":
        self._hook = self.unet.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _note(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        call, self._calls = self._calls, self._calls + 1
        if not self.keep(call):
            return
        positions = ("sample", "timestep", "encoder_hidden_states")
        given = dict(zip(positions, args, strict=False)) | {
            key: value for key, value in named.items() if value is not None
        }
        x = given["sample"]
        t = torch.as_tensor(given["timestep"]).cpu().reshape(-1).expand(len(x))
        more = {"context": given.get("encoder_hidden_states"), "labels": given.get("class_labels")}
        kept = {name: value.detach().cpu().clone() for name, value in more.items() if isinstance(value, Tensor)}
        self._parts.append(Records(x.detach().cpu().clone(), t.clone(), **kept))

    def records(self) -> Records:
        """What was kept, in the order of the calls.

        Raises:
            UserError: nothing was.
        """
        if not self._parts:
            raise UserError("no call of the network was recorded")
        return concatenated(self._parts)
