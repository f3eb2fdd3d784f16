"""Reference files of single quantisers and layers, recomputed.

In float32, as they were made: a value on the edge between two steps must fall to the same side.
"""

import ast
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Check, check_options
from ptq4dm.method.adaround import AdaRoundQuantizer, rounding_regulariser, temperature
from ptq4dm.method.quant_layer import QuantLayer
from ptq4dm.method.quantizer import UniformAffineQuantizer
from ptq4dm.method.range_search import check_bits

Computed = dict[str, Any]


def close(found: Tensor, wanted: Tensor, relative: float, odd: float = 0.0, odd_by: float = 0.0) -> Check:
    """Differences relative to the largest entry; a share `odd` of the entries may differ by up to `odd_by` of it."""
    if found.shape != wanted.shape:
        return Check(float("inf"), relative, f"shape {tuple(found.shape)}, {tuple(wanted.shape)} in the file")
    largest = wanted.abs().max().clamp(min=1e-30)
    errors = ((found.detach() - wanted).abs() / largest).nan_to_num(float("inf")).flatten().sort(descending=True)[0]
    beyond = int((errors > relative).sum())
    allowed = int(odd * errors.numel())
    if beyond and beyond <= allowed and errors[0] <= odd_by:
        rest = errors[beyond].item() if beyond < errors.numel() else 0.0
        return Check(rest, relative, f"{beyond} of {errors.numel()} entries lie beyond, by {errors[0].item():.2g}")
    return Check(errors[0].item() if errors.numel() else 0.0, relative)


def cases(file: ReferenceFile) -> dict[str, Mapping[str, Any]]:
    """The options of each case.

    Raises:
        UserError: an entry of the config that is no case.
    """
    for name, options in file.config.items():
        if not isinstance(options, dict):
            raise UserError(f"config.{name} is {options!r}; each entry is a case with options")
    return dict(file.config)


def _quantizer(options: Mapping[str, Any], where: str) -> UniformAffineQuantizer:
    check_options(options, ("n_bits", "channel_wise", "scale_method", "symmetric", "leaf_param"), where)
    return UniformAffineQuantizer(
        options.get("n_bits", 8),
        options.get("channel_wise", False),
        options.get("scale_method", "max"),
        options.get("symmetric", False),
        options.get("leaf_param", False),
    )


def _rounded(found: Tensor, wanted: Tensor, delta: Tensor) -> Check:
    """Fake-quantised values: one in a thousand may lie on the next step."""
    largest = wanted.abs().max().clamp(min=1e-30)
    return close(found, wanted, 1e-5, odd=1e-3, odd_by=1.001 * (delta.abs().max() / largest).item())


def uniform_affine_quantizer(file: ReferenceFile) -> Computed:
    """Ranges, outputs and gradients of quantisers."""
    computed: Computed = {}
    for name, options in cases(file).items():
        quantizer = _quantizer(options, f"config.{name}")
        x = file.inputs[f"{name}.x"].clone().requires_grad_()
        quantizer.initialise(x)
        y = quantizer(x)
        computed[f"out.{name}.delta"] = quantizer.delta
        computed[f"out.{name}.zero_point"] = quantizer.zero_point
        computed[f"out.{name}.y"] = _rounded(y, file.outputs[f"{name}.y"], quantizer.delta)
        named = {f"grad.{name}.x": x, f"grad.{name}.delta": quantizer.delta}
        computed |= _gradients(file, (y * file.inputs[f"{name}.cotangent"]).sum(), named)
    return computed


def _gradients(file: ReferenceFile, total: Tensor, named: Mapping[str, Tensor]) -> Computed:
    """Those of `named` that the file has; one in a thousand entries may lie on the other side of a bound."""
    wanted = {name: value for name, value in named.items() if name in file.tensors}
    if not wanted:
        return {}
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    computed: Computed = {}
    for (name, value), gradient in zip(wanted.items(), found, strict=True):
        gradient = torch.zeros_like(value) if gradient is None else gradient
        of_step = name.endswith("delta")
        computed[name] = close(gradient, file.tensors[name], 1e-3 if of_step else 1e-5, 0.0 if of_step else 1e-3, 1.0)
    return computed


def adaround(file: ReferenceFile) -> Computed:
    """Learned rounding: start, soft and hard weights, regulariser, gradients, temperature."""
    computed: Computed = {}
    for name, options in cases(file).items():
        if "t_max" in options:
            check_options(options, ("t_max", "warmup", "b"), f"config.{name}")
            start, end = options["b"]
            steps = file.inputs[f"{name}.t"].tolist()
            found = [temperature(t, options["t_max"], options["warmup"], start, end) for t in steps]
            computed[f"out.{name}.b"] = torch.tensor(found)
        else:
            computed |= _rounding(file, name, _quantizer(options, f"config.{name}"))
    return computed


def _rounding(file: ReferenceFile, name: str, quantizer: UniformAffineQuantizer) -> Computed:
    inputs = file.part(f"in.{name}.")
    weight, given = inputs["w"], inputs["alpha"]
    quantizer.initialise(weight)
    rounding = AdaRoundQuantizer(quantizer, weight)

    def weights(suffix: str) -> Computed:
        rounding.soft = True
        soft = rounding(weight).detach()
        rounding.soft = False
        return {f"out.{name}.soft{suffix}": soft, f"out.{name}.hard{suffix}": rounding(weight).detach()}

    computed: Computed = {
        f"out.{name}.delta": rounding.delta,
        f"out.{name}.zero_point": rounding.zero_point,
        f"out.{name}.h_init": rounding.h().detach(),
        **weights("_init"),
        f"out.{name}.alpha_init": given,  # the reference kept the alpha that was set afterwards
    }
    with torch.no_grad():
        rounding.alpha.copy_(given)
    computed |= {f"out.{name}.h": rounding.h().detach(), **weights("")}
    computed[f"out.{name}.reg"] = torch.stack([rounding_regulariser(rounding.alpha, b) for b in inputs["b"].tolist()])
    rounding.soft = True
    total = (rounding(weight) * inputs["cotangent"]).sum()
    computed |= _gradients(file, total, {f"grad.{name}.alpha": rounding.alpha})
    begin = f"grad.{name}.reg_alpha_b"
    for key in file.tensors:
        if key.startswith(begin):
            regulariser = rounding_regulariser(rounding.alpha, float(key.removeprefix(begin)))
            computed |= _gradients(file, regulariser, {key: rounding.alpha})
    return computed


def printed_layer(text: Any, where: str) -> nn.Conv2d | nn.Linear:
    """The layer that torch prints as `text`, from literals alone.

    Raises:
        UserError: it is none.
    """
    try:
        call = ast.parse(text, mode="eval").body
        kind = {"Conv2d": nn.Conv2d, "Linear": nn.Linear}[cast(ast.Name, cast(ast.Call, call).func).id]
        assert isinstance(call, ast.Call)
        args = [ast.literal_eval(value) for value in call.args]
        named = {word.arg: _literal(word.value) for word in call.keywords if word.arg is not None}
        layer: nn.Conv2d | nn.Linear = kind(*args, **named)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} is {str(text)[:100]!r}; it is a Conv2d or Linear as torch prints it") from error
    return layer


def _literal(value: ast.expr) -> Any:
    return value.id if isinstance(value, ast.Name) else ast.literal_eval(value)  # torch prints padding_mode bare


def quant_module(file: ReferenceFile) -> Computed:
    """Single layers: ranges, outputs in the three modes, gradients."""
    computed: Computed = {}
    named_cases = [key.removesuffix(".x_init") for key in file.inputs if key.endswith(".x_init")]
    check_options(file.config, {case.rsplit(".", 2)[0] for case in named_cases})
    for case in named_cases:
        if case.count(".") < 2:
            raise UserError(f"case {case}; it is named layer.wBaA.tensor or layer.wBaA.channel")
        name, bits, mode = case.rsplit(".", 2)
        weight_bits, _, activation_bits = bits.removeprefix("w").partition("a")
        if not (weight_bits.isdigit() and activation_bits.isdigit() and mode in ("tensor", "channel")):
            raise UserError(f"case {case}; it is named layer.wBaA.tensor or layer.wBaA.channel")
        check_bits(int(weight_bits), f"weight bits of {case}")
        layer = QuantLayer(
            printed_layer(file.config[name], f"config.{name}"),
            UniformAffineQuantizer(int(weight_bits), mode == "channel", "mse"),
            UniformAffineQuantizer(int(activation_bits), scale_method="mse", learned_step=True),
        )
        state = file.part(f"sd.{case}.")
        with torch.no_grad():
            layer.weight.copy_(state["weight"])
            if layer.bias is not None:
                layer.bias.copy_(state["bias"])
            x = file.inputs[f"{case}.x"]
            computed[f"out.{case}.fp"] = layer(x)
            layer.weights_quantized = layer.inputs_quantized = True
            layer(file.inputs[f"{case}.x_init"])
            layer.inputs_quantized = False
            computed[f"out.{case}.w"] = layer(x)
        quantizers = {"act": layer.act_quantizer, "weight": cast(UniformAffineQuantizer, layer.weight_quantizer)}
        for part, quantizer in quantizers.items():
            computed[f"out.{case}.{part}_zero_point"] = quantizer.zero_point
        computed[f"out.{case}.weight_delta"] = quantizers["weight"].delta
        found, wanted = layer.act_quantizer.delta, state["act_quantizer.delta"]
        computed[f"sd.{case}.act_quantizer.delta"] = close(found, wanted, 1e-5)
        layer.inputs_quantized = True
        x = x.clone().requires_grad_()
        out = layer(x)
        computed[f"out.{case}.wa"] = close(out, file.outputs[f"{case}.wa"], 1e-5, odd=1e-3, odd_by=0.05)
        named = {"x": x, "act_delta": layer.act_quantizer.delta, "weight": layer.weight}
        total = (out * file.inputs[f"{case}.cotangent"]).sum()
        computed |= _gradients(file, total, {f"grad.{case}.{part}": value for part, value in named.items()})
    return computed
