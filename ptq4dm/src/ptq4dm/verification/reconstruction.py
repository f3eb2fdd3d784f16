"""Reference files of quantised blocks, whole networks and their reconstruction, recomputed.

In the order of sums in which they were made, as far as torch tells: one flipped code spreads through a network.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from paperkit.errors import UserError
from paperkit.files.keys import load_strict
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Check, check_options
from ptq4dm.method.adaround import learn_rounding
from ptq4dm.method.calibration import Records, predict
from ptq4dm.method.quant_model import (
    QuantConfig,
    initialise_activation_ranges,
    initialise_weight_ranges,
    low_bit_layers,
    quant_layers,
    quantize,
    set_quantized,
)
from ptq4dm.method.reconstruction import StepSettings, WeightSettings, learn_steps, reconstruct_weights
from ptq4dm.models.compvis import RESNET, load_official, official_name, unet_names
from ptq4dm.models.latent_diffusion import UNetOptions, build_unet
from ptq4dm.verification.attention_order import use_authors_order
from ptq4dm.verification.quantizers import Computed, cases, close

QUANTIZERS = (".weight_quantizer.alpha", ".act_quantizer.delta")
MODEL = (
    "forward: e = b(c[:,0]*(1+t/1000)); y = z(ResBlock(ch,12)(silu(a(x)),e)); 8 GroupNorm groups; "
    "ranges initialised on the first 8 samples"
)


@contextmanager
def one_thread() -> Iterator[None]:
    """The files were made on one; several split sums otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def deep(found: Tensor, wanted: Tensor, activations: bool) -> Check:
    """Outputs of several quantised layers: behind activations, a step of one grows on its way through the others."""
    return close(found, wanted, 1e-4, odd=0.02, odd_by=0.05) if activations else close(found, wanted, 1e-4)


def _inner(name: str, names: Mapping[str, str]) -> str:
    """A layer's name in another scheme, with what follows it."""
    for begin, other in names.items():
        if name == begin or name.startswith(f"{begin}."):
            return other + name.removeprefix(begin)
    return name


TO_RESNET = {theirs: ours for ours, theirs in RESNET.items()}


def _block(options: Mapping[str, Any], where: str) -> tuple[nn.Module, dict[str, str]]:
    """A block of diffusers for the official options, and official layer names by ours."""
    check_options(options, ("kind", "args", "w_bits", "a_bits", "quantised"), where)
    args = options["args"]
    if options["kind"] == "ResBlock":
        known = ("channels", "emb_channels", "dropout", "out_channels", "use_scale_shift_norm", "up", "down")
        check_options(args, known, f"{where}.args")
        block: nn.Module = ResnetBlock2D(
            in_channels=args["channels"],
            out_channels=args.get("out_channels"),
            temb_channels=args["emb_channels"],
            groups=8,
            eps=1e-5,
            time_embedding_norm="scale_shift" if args.get("use_scale_shift_norm") else "default",
            up=args.get("up", False),
            down=args.get("down", False),
        )
        return block, RESNET
    if options["kind"] == "BasicTransformerBlock":
        check_options(args, ("dim", "n_heads", "d_head", "dropout", "context_dim", "checkpoint"), f"{where}.args")
        context = args.get("context_dim")
        width = {"cross_attention_dim": context, "double_self_attention": context is None}
        return BasicTransformerBlock(args["dim"], args["n_heads"], args["d_head"], **width), {}
    raise UserError(f"{where}.kind is {options['kind']!r}; it is ResBlock or BasicTransformerBlock")


@one_thread()
def quant_blocks(file: ReferenceFile) -> Computed:
    """Blocks by themselves: which layers, their ranges, outputs in the three modes."""
    computed: Computed = {}
    for name, options in cases(file).items():
        computed |= _quant_block(file, name, options)
    return computed


def _quant_block(file: ReferenceFile, name: str, options: Mapping[str, Any]) -> Computed:
    block, official = _block(options, f"config.{name}")
    state = file.part(f"sd.{name}.")
    ours = TO_RESNET if official else {}
    weights = {_inner(key, ours): value for key, value in state.items() if not key.endswith(QUANTIZERS)}
    load_strict(block, weights, f"sd.{name}")
    quantize(block.eval(), QuantConfig(options["w_bits"], options["a_bits"], first_last_bits=None))
    inputs, outputs = file.part(f"in.{name}."), file.part(f"out.{name}.")

    def run(which: str, weights: bool, activations: bool) -> Tensor:
        set_quantized(block, weights, activations)
        x, c = inputs[f"x{which}"], inputs[f"c{which}"]
        return cast(Tensor, block(x, c) if official else block(x, encoder_hidden_states=c)).detach()

    computed: Computed = {f"out.{name}.fp": deep(run("", False, False), outputs["fp"], False)}
    use_authors_order(block)
    initialise_weight_ranges(block)
    run("_init", True, True)
    computed[f"out.{name}.w"] = deep(run("", True, False), outputs["w"], False)
    computed[f"out.{name}.wa"] = deep(run("", True, True), outputs["wa"], True)
    names = {_inner(layer, official): layer for layer in quant_layers(block)}
    computed[f"config.{name}.quantised"] = set(names)
    computed |= _ranges(file, block, {f"{name}.q.{theirs}": layer for theirs, layer in names.items()})
    for theirs, layer in names.items():
        key = f"{theirs}.act_quantizer.delta"
        computed[f"sd.{name}.{key}"] = close(quant_layers(block)[layer].act_quantizer.delta, state[key], 1e-4)
    return computed


def _ranges(file: ReferenceFile, network: nn.Module, names: Mapping[str, str]) -> Computed:
    """Every range of the layers (their name behind `out.` -> ours) that the file has.

    An activation deep in a network is rounded otherwise here than there, so its step is compared as loosely as it is.
    """
    computed: Computed = {}
    layers = quant_layers(network)
    for theirs, ours in names.items():
        for part, tolerance in (("weight_quantizer", 1e-5), ("act_quantizer", 1e-4)):
            quantizer = getattr(layers[ours], part)
            begin = f"out.{theirs}.{part}"
            if f"{begin}.delta" in file.tensors:
                computed[f"{begin}.delta"] = close(quantizer.delta, file.tensors[f"{begin}.delta"], tolerance)
                computed[f"{begin}.zero_point"] = quantizer.zero_point
    return computed


@one_thread()
def quant_unet(file: ReferenceFile) -> Computed:
    """A whole U-Net: ranges, nearest and, where the file has it, learned rounding."""
    c = file.config
    unet = build_unet(UNetOptions.of_official(c["official"], c["norm_num_groups"])).eval()
    state = file.part("sd.model.")
    weights = {key: value for key, value in state.items() if not key.endswith(QUANTIZERS)}
    load_official(unet, weights, unet_names(unet), "sd.model")

    def records(suffix: str) -> Records:
        context = file.inputs[f"context{suffix}"] if f"in.context{suffix}" in file.tensors else None
        return Records(file.inputs[f"x{suffix}"], file.inputs[f"t{suffix}"], context)

    def out(key: str, activations: bool = False) -> Computed:
        found = predict(unet, records("")).detach()
        return {f"out.{key}": deep(found, file.outputs[key], activations)}

    computed = out("fp")
    use_authors_order(unet)
    quantize(unet, QuantConfig(c["w_bits"], c["a_bits"]))
    names = {
        ours: f"model.{official_name(unet, f'{ours}.weight').removesuffix('.weight')}" for ours in quant_layers(unet)
    }
    if "bit_widths" in file.metadata:
        found = {names[ours]: list(layer.bits) for ours, layer in quant_layers(unet).items()}
        odd = [name for name, bits in json.loads(file.metadata["bit_widths"]).items() if found.pop(name, None) != bits]
        computed["bit_widths"] = Check(float(len(odd) + len(found)), 0.0, ", ".join([*odd, *found][:3]))
    initialise_weight_ranges(unet)
    set_quantized(unet, weights=True, activations=False)
    computed |= out("w_nearest")
    init = records("_init")
    initialise_activation_ranges(unet, init, len(init))
    computed |= out("wa_nearest", True) | _ranges(file, unet, {f"q.{theirs}": ours for ours, theirs in names.items()})
    for ours, layer in quant_layers(unet).items():
        key = f"{names[ours].removeprefix('model.')}.act_quantizer.delta"
        computed[f"sd.model.{key}"] = close(layer.act_quantizer.delta, state[key], 1e-4)
    if not any(key.endswith(".alpha") for key in state):
        return computed
    with torch.no_grad():
        for ours, layer in low_bit_layers(unet).items():
            alpha = state[f"{names[ours].removeprefix('model.')}.weight_quantizer.alpha"]
            learn_rounding(layer)[0].alpha.copy_(alpha)
    set_quantized(unet, weights=True, activations=False)
    computed |= out("w_adaround")
    set_quantized(unet, weights=True, activations=True)
    return computed | out("wa_adaround", True)


class Toy(nn.Module):
    """The network of the kind `reconstruction`: a convolution, a residual block, a convolution."""

    def __init__(self, channels: int, inputs: int, embedding: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(inputs, channels, 3, padding=1)
        self.b = nn.Linear(embedding, embedding)
        self.res = ResnetBlock2D(in_channels=channels, temb_channels=embedding, groups=8, eps=1e-5)
        self.z = nn.Conv2d(channels, inputs, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """(B, inputs, H, W), (B,), (B, 1, embedding) -> (B, inputs, H, W)."""
        e = self.b(c[:, 0] * (1 + t[:, None] / 1000))
        return cast(Tensor, self.z(self.res(F.silu(self.a(x)), e)))


@one_thread()
def reconstruction(file: ReferenceFile) -> Computed:
    """Both stages with the recorded draws, unit by unit in the file's order."""
    c = file.config
    if c.get("model", MODEL) != MODEL:
        raise UserError(f"the model of this kind is {MODEL}")
    records = Records(file.inputs["x"], file.inputs["t"], file.inputs["y"])
    model = Toy(c["ch"], file.state["a.weight"].shape[1], file.state["b.weight"].shape[1]).eval()
    inner = {f"res.{theirs}": f"res.{ours}" for theirs, ours in TO_RESNET.items()}
    load_strict(model, {_inner(key, inner): value for key, value in file.state.items()}, "sd")
    config = QuantConfig(c["w_bits"], c["a_bits"], c.get("w_channel_wise", False), first_last_bits=None)
    quantize(model, config)
    names = {
        theirs: ours for theirs in ("a", "b", "z", *inner) if (ours := inner.get(theirs, theirs)) in quant_layers(model)
    }
    layers = quant_layers(model)
    initialise_weight_ranges(model)
    computed: Computed = {}

    def draws(stage: str, unit: str) -> Iterator[Tensor]:
        return iter(file.inputs[f"{stage}_{'block' if unit == 'res' else 'layer'}_{unit}.batch_idx"])

    stages = [tuple(entry.split(": ")) for entry in c["order"]]
    for stage, entries in itertools.groupby(stages, key=lambda entry: entry[0]):
        units = [entry[1] for entry in entries]
        if stage == "w":
            for unit in units:
                reconstruct_weights(model, records, _weights(c), units=[unit], batches=lambda u: draws("w", u))
            computed["out.w_model"] = deep(predict(model, records[:4]).detach(), file.outputs["w_model"], False)
            continue
        initialise_activation_ranges(model, records, min(8, len(records)))
        computed |= _ranges(file, model, {f"before_act.q.model.{theirs}": ours for theirs, ours in names.items()})
        for unit in units:
            learn_steps(model, records, _steps(c), units=[unit], batches=lambda u: draws("a", u))
        computed["out.wa_model"] = deep(predict(model, records[:4]).detach(), file.outputs["wa_model"], True)
    for stage, unit in stages:
        begin = f"out.{stage}_{'block' if unit == 'res' else 'layer'}_{unit}"
        for theirs, ours in names.items():
            if theirs != unit and not theirs.startswith(f"{unit}."):
                continue
            key = begin if theirs == unit else f"{begin}.{theirs.removeprefix(f'{unit}.')}"
            if stage == "w":
                wanted = file.tensors[f"{key}.alpha"]
                alpha = cast(Tensor, layers[ours].weight_quantizer.alpha)
                computed[f"{key}.alpha"] = close(alpha, wanted, 1e-4, odd=0.005, odd_by=1.0)
            else:
                wanted = file.tensors[f"{key}.act_delta"]
                computed[f"{key}.act_delta"] = close(layers[ours].act_quantizer.delta, wanted, 1e-5)
                # The reference kept this tensor by reference, so it holds the learned step as well.
                before = f"before_act.q.model.{theirs}.act_quantizer.delta"
                computed[f"out.{before}"] = close(layers[ours].act_quantizer.delta, file.outputs[before], 1e-5)
    return computed


def _weights(c: Mapping[str, Any]) -> WeightSettings:
    known = ("weight", "b_range", "warmup", "asym", "batch_size", "lr", "p")
    check_options(c["weight_stage"], known, "config.weight_stage")
    s = c["weight_stage"]
    return WeightSettings(
        iterations=c["iters"],
        batch_size=s["batch_size"],
        lr=s["lr"],
        power=s["p"],
        quantized_inputs=s["asym"],
        rounding_weight=s["weight"],
        start_b=s["b_range"][0],
        end_b=s["b_range"][1],
        warmup=s["warmup"],
    )


def _steps(c: Mapping[str, Any]) -> StepSettings:
    check_options(c["act_stage"], ("lr", "p", "batch_size", "asym"), "config.act_stage")
    s = c["act_stage"]
    return StepSettings(
        iterations=c["iters"], batch_size=s["batch_size"], lr=s["lr"], power=s["p"], quantized_inputs=s["asym"]
    )
