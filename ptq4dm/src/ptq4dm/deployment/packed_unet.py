"""`pack(unet)`: a quantised network with integer weights, and the engine that runs it.

On a CPU a U-Net of known blocks runs as one program of the kernels (`unet_program.py`); a network of unknown blocks,
or one on CUDA, runs module by module.
"""

import copy
import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from ptq4dm.deployment import kernels as native
from ptq4dm.deployment.packed_layers import PackedLayer
from ptq4dm.deployment.program import SizeError, UnsupportedError
from ptq4dm.deployment.unet_program import UNetProgram, build
from ptq4dm.method.quant_model import ActivationRange, config_of, quant_layers

MOST_PROGRAMS = 8
"""Sizes of input whose programs are kept."""


class PackedUNet(nn.Module):
    """A network of packed layers, called as diffusers' own; use it in a pipeline in place of the U-Net.

    Args:
        network: with `PackedLayer`s; anything with the call `network(sample, timestep, ...)`.
        widths: bit widths of the inputs for which the layers have ranges, in their order.
        schedule: time step -> width, taken at each call; without one, `use_activation_bits` chooses.
    """

    def __init__(self, network: nn.Module, widths: Sequence[int], schedule: Mapping[int, int] | None = None) -> None:
        super().__init__()
        self.network, self.widths = network.eval().requires_grad_(False), tuple(widths)
        self.schedule = dict(schedule or {})
        if odd := sorted(set(self.schedule.values()) - set(self.widths)):
            raise UserError(f"the schedule takes {odd[0]}-bit inputs, and there are ranges for {self._known()}")
        self._row, self._programs = 0, dict[Any, UNetProgram | None]()
        self._lock = threading.Lock()  # a call sets ranges and fills one memory, and lets other threads run
        self.unsupported = ""

    @property
    def config(self) -> Any:
        """Of the diffusers network."""
        return self.network.config

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers that are not integers."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(itertools.chain(self.network.parameters(), self.network.buffers())).device

    def _apply(self, *args: Any, **named: Any) -> Any:
        self._programs.clear()  # they hold the weights as they were
        return super()._apply(*args, **named)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes: programs are places in this one's memory, and are built again."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_programs", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._programs, self._lock = {}, threading.Lock()
        super().__setstate__(state)

    def packed_layers(self) -> dict[str, PackedLayer]:
        """By full name."""
        return {name: part for name, part in self.network.named_modules() if isinstance(part, PackedLayer)}

    def _known(self) -> str:
        return ", ".join(map(str, self.widths))

    def use_activation_bits(self, bits: int) -> None:
        """Takes the input ranges of a bit width, in all layers.

        Raises:
            UserError: there are none for it.
        """
        if bits not in self.widths:
            raise UserError(f"no ranges for {bits}-bit inputs; there are some for {self._known()}")
        if self._row == (row := self.widths.index(bits)):
            return
        self._row = row
        for layer in self.packed_layers().values():
            layer.row = row

    def _follow_schedule(self, timestep: Tensor | float) -> None:
        steps = torch.as_tensor(timestep).reshape(-1).unique()
        if len(steps) != 1:
            raise UserError(
                f"{len(steps)} time steps in one call; a bit schedule takes all images of a call at one step"
            )
        step = int(steps)
        if step not in self.schedule:
            raise UserError(
                f"time step {step} is not in the bit schedule of {len(self.schedule)} steps; sample the steps of the "
                "run that was packed, with statistics of those steps, or pack a run without a mixed schedule"
            )
        self.use_activation_bits(self.schedule[step])

    def engine(self) -> str:
        """What computes, in words; known for certain after the first call."""
        if self.device.type != "cpu":
            return f"torch._int_mm on {self.device.type}, module by module"
        tier = native.tier()
        if tier == "torch":
            return "torch._int_mm, module by module"
        if self.unsupported:
            return f"torch._int_mm, module by module ({self.unsupported} has no steps in the kernels)"
        return f"own C++ kernels, tier {tier}"

    def program(self, sample: Tensor, context: Tensor | None = None) -> UNetProgram | None:
        """The program for such a sample; None where there is none."""
        kernels = native.kernels() if sample.device.type == "cpu" and not self.unsupported else None
        if kernels is None or not hasattr(self.network, "config") or sample.ndim != 4:
            return None
        wide = context is not None and context.shape
        key = (kernels.tier, torch.get_num_threads(), sample.shape, wide, self._row)
        if key not in self._programs:
            if self.device.type != "cpu" or not len(sample) or (context is not None and context.ndim != 3):
                return None
            sizes = None if context is None else (context.shape[1], context.shape[2])
            made: UNetProgram | None = None
            try:
                made = build(self.network, kernels, tuple(sample.shape), sizes)  # type: ignore[arg-type]
            except SizeError:
                pass  # kept as None: the next call of this size need not try again
            except UnsupportedError as error:
                self.unsupported = str(error)
                return None
            if len(self._programs) >= MOST_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[key] = made
        return self._programs[key]

    @torch.no_grad()
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        """Predicted noise (B, C, H, W), as diffusers' networks return it.

        Sizes that the program does not take, and any of `others` that is not None, go to the network itself.
        """
        inputs = {"encoder_hidden_states": encoder_hidden_states, "class_labels": class_labels, **others}
        with self._lock:
            found = self._noise(sample, timestep, {key: value for key, value in inputs.items() if value is not None})
        if not return_dict:
            return (found,)
        from diffusers.models.unets.unet_2d import UNet2DOutput

        return UNet2DOutput(sample=found)

    def _noise(self, sample: Tensor, timestep: Tensor | float, inputs: dict[str, Any]) -> Tensor:
        if self.schedule:
            self._follow_schedule(timestep)
        context, labels = inputs.get("encoder_hidden_states"), inputs.get("class_labels")
        known = inputs.keys() <= {"encoder_hidden_states", "class_labels"}
        program = self.program(sample, context) if known else None
        if program is None:
            found: Tensor = self.network(sample, timestep, **inputs, return_dict=False)[0]
            return found
        if (program.labels is None) != (labels is None):
            raise ValueError("class_labels and the network's class embedding go together")
        return program(sample, torch.as_tensor(timestep).reshape(-1).expand(len(sample)), context, labels)


@torch.no_grad()
def pack(
    unet: nn.Module,
    ranges: Mapping[int, Mapping[str, ActivationRange]] | None = None,
    schedule: Mapping[int, int] | None = None,
) -> PackedUNet:
    """A copy of a quantised network with integers in place of its float weights.

    Args:
        ranges: of the activations by bit width, each as `activation_ranges` gives them; else those in use now.
        schedule: time step -> bit width.

    Raises:
        UserError: it is not quantised, quantises its attention products, or a layer cannot be packed (named).
    """
    config = config_of(unet)
    if config.attention_matmul_bits is not None:
        raise UserError("quantised attention products have no integer form here; pack a network without them")
    replaced: dict[int, Any] = {}
    for name, layer in quant_layers(unet).items():
        inputs = [of_width[f"{name}.act_quantizer"] for of_width in (ranges or {}).values()]
        replaced[id(layer)] = PackedLayer.of(layer, name, inputs)
    network = copy.deepcopy(unet, replaced)
    return PackedUNet(network, tuple(ranges or (config.activation_bits,)), schedule)
