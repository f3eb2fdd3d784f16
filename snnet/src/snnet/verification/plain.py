"""Reference files of plain ViTs, enumeration, least squares, losses and training steps, computed again."""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from paperkit.training.classification import Distillation
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Check, check_options
from snnet.method.counting import reported_parameters
from snnet.method.enumeration import Configuration, Cut, paired, plain_configurations, staged_configurations, unpaired
from snnet.method.least_squares import Position, activations, ends, initialise, set_affine, solve_pinv, with_bias
from snnet.method.losses import StitchLoss
from snnet.method.sampling import IdStream
from snnet.method.steps import Step
from snnet.method.stitching import StitchedNetwork
from snnet.models.official import load_official


def as_released(configuration: Configuration) -> dict[str, Any]:
    """A configuration in the words of the released lists."""
    entry: dict[str, Any] = {
        "comb_id": list(configuration.anchors),
        "stitch_cfgs": [list(cut) for cut in configuration.cuts],
        "stitch_layers": list(configuration.layers),
    }
    return entry if configuration.stage is None else entry | {"stage_id": configuration.stage}


def load_network(network: StitchedNetwork, state: Mapping[str, Tensor]) -> StitchedNetwork:
    """Load an official state dict and switch to eval mode."""
    load_official(network, state, "the reference file")
    return network.eval()


def stitched_results(network: StitchedNetwork, file: ReferenceFile) -> dict[str, Any]:
    """What every network kind holds: all logits; in most files the least-squares layers and all logits with them."""
    with torch.no_grad():
        results: dict[str, Any] = {"out.logits": all_logits(network, file.inputs["x"])}
        if not any(name.startswith(("out.ls.", "out.logits_after_ls")) for name in file.tensors):
            return results
        initialise(network, [file.inputs["x_init"]])
        rows = activations(network, file.inputs["x_init"])
        for step, cuts in network.stitch_steps().items():
            results |= _fitted_layer(network, file, step, cuts, rows)
        results["out.logits_after_ls"] = all_logits(network, file.inputs["x"])
    return results


def _fitted_layer(
    network: StitchedNetwork, file: ReferenceFile, step: Step, cuts: list[Cut], rows: Mapping[Position, Tensor]
) -> dict[str, Any]:
    """One layer after least squares.

    Where the activations are ill-conditioned, rounding alone moves float32 weights by more than any useful
    tolerance. Then the residuals are compared (and the weights of channels that are zero throughout, which no
    residual sees), and the layer takes the file's weights: the logits that are compared next follow from them, so a
    wrong weight shows there.
    """
    layer = network.stitching_layer(step)
    names = [f"out.ls.{network.key_prefixes(step)[0]}transform.{part}" for part in ("weight", "bias")]
    weight, bias = (parameter.detach().clone() for parameter in layer.transform.parameters())
    pairs = [ends(step, cut) for cut in cuts]
    condition = max((_condition(with_bias(rows[front])) for front, _ in pairs), default=1.0)
    if condition < 1e3 or not all(name in file.tensors for name in names):
        return dict(zip(names, (weight, bias), strict=True))
    file_weight, file_bias = (file.tensors[name] for name in names)
    ours, theirs = (torch.cat([w.flatten(1).T, b[None]]) for w, b in ((weight, bias), (file_weight, file_bias)))
    found, expected = (
        torch.stack([(with_bias(rows[x]) @ a - rows[y]).norm() / rows[y].norm() for x, y in pairs]).norm().item()
        for a in (ours, theirs)
    )
    silent = torch.stack([with_bias(rows[front]).abs().amax(0) for front, _ in pairs]).amax(0) == 0
    unseen = (ours - theirs).abs()[silent].sum().item() / theirs.abs().max().item()
    set_affine(layer, theirs)
    note = f"condition {condition:.0e}: residual {found:.5f}, of the file {expected:.5f}"
    return dict.fromkeys(names, Check(max(abs(found - expected) / 10, unseen), 1e-4, note))


def _condition(x: Tensor) -> float:
    """Condition number of x over the directions that a float32 pseudo-inverse may keep (it surely cuts the others)."""
    singular = torch.linalg.svdvals(x.double())
    kept = singular[singular > 0.1 * max(x.shape) * torch.finfo(torch.float32).eps * singular[0]]
    return (kept[0] / kept[-1]).item()


def all_logits(network: StitchedNetwork, x: Tensor) -> Tensor:
    """(configurations, B, classes), computed with shared prefixes."""
    found = dict(network.forward_many(x, range(network.num_configurations)))
    return torch.stack([cast(Tensor, found[i]) for i in range(network.num_configurations)])


def configuration_results(network: StitchedNetwork) -> dict[str, Any]:
    """The lists that stand in a network file's config."""
    staged = network.families[-1].stitched_stages is not None
    pairs = network.pairs
    index = {key: sum(other[0] == key[0] for other in list(pairs)[:i]) for i, key in enumerate(pairs)}
    results: dict[str, Any] = {
        "config.configs": [as_released(c) for c in network.configurations],
        "config.num_configs": network.num_configurations,
        "config.stitching_map_id": {"-".join(map(str, key if staged else key[1:])): i for key, i in index.items()},
    }
    if staged:
        stages = sorted({stage for stage, _, _ in pairs})
        results["config.num_stitches"] = [
            [[found.num_layers, [front, end]] for (at, front, end), found in pairs.items() if at == stage]
            for stage in stages
        ]
    else:
        results["config.num_stitches"] = next(iter(pairs.values())).num_layers
    return results


def _plain_network(config: Mapping[str, Any]) -> StitchedNetwork:
    epsilon = config.get("norm_eps", 1e-6)
    anchors = [
        VisionTransformer(
            img_size=config["img_size"],
            patch_size=config["patch_size"],
            num_classes=config["num_classes"],
            embed_dim=width,
            depth=config["depth"],
            num_heads=heads,
            mlp_ratio=config.get("mlp_ratio", 4),
            norm_layer=partial(nn.LayerNorm, eps=epsilon),
        )
        for width, heads in zip(config["dims"], config["heads"], strict=True)
    ]
    return StitchedNetwork(
        anchors,
        nearest=config["nearest_stitching"],
        window=config["kernel_size"],
        stride=config["stride"],
        stitched_final_norm=False,
        any_order=True,
    )


def plain_vit(file: ReferenceFile) -> dict[str, Any]:
    """Every activation, the reported parameters, and what `stitched_results` has."""
    network = load_network(_plain_network(file.config), file.state)
    results = configuration_results(network)
    with torch.no_grad():
        for (anchor, _, block), rows in activations(network, file.inputs["x"]).items():
            results[f"out.feat.{anchor}.{block}"] = rows.view(len(file.inputs["x"]), -1, rows.shape[-1])
    results["out.params"] = torch.tensor(reported_parameters(network))
    return results | stitched_results(network, file)


def training_steps(file: ReferenceFile) -> dict[str, Any]:
    """Plain SGD at learning rate 0.1 on the loss that `snnet train` uses, ids from its stream."""
    config = file.config
    network = load_network(_plain_network(config), file.state)
    loss_of = StitchLoss(distillation=cast(Distillation, config["distillation"]), alpha=config["alpha"])
    stream = IdStream(range(network.num_configurations), config["numpy_seed"])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    steps = len(config["sampled_ids"])
    results: dict[str, Any] = {
        "config.sampled_ids": [stream[k] for k in range(steps)],
        "config.num_configs": network.num_configurations,
    }
    for k in range(steps):
        images, labels, teacher = (file.inputs[f"{k}.{name}"] for name in ("x", "soft_labels", "teacher"))
        optimizer.zero_grad()
        loss = loss_of(network, images, labels, stream.at_step(k, 1), teacher)
        loss.backward()
        with torch.no_grad():
            results[f"out.{k}.logits"], results[f"out.{k}.loss"] = network(images, stream[k]), loss.detach()
        results |= {f"grad.{k}.{n}": p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        optimizer.step()
    return results | {f"out.final.{name}": value for name, value in network.state_dict().items()}


def losses(file: ReferenceFile) -> dict[str, Any]:
    """Every loss that the file names `out.<base>.<kind>.<alpha>.<tau>`; base is mixup or smooth."""
    results: dict[str, Any] = {}
    for name in file.outputs:
        base, kind, *numbers = name.split(".")
        alpha, tau = float(".".join(numbers[:2])), float(".".join(numbers[2:]))
        target = file.inputs["soft_labels" if base == "mixup" else "labels"]
        outputs = file.inputs["outputs"].clone().requires_grad_()
        loss = StitchLoss(0.1, cast(Distillation, kind), alpha, tau).of_logits(outputs, target, file.inputs["teacher"])
        (results[f"grad.{name}"],) = torch.autograd.grad(loss, outputs)
        results[f"out.{name}"] = loss.detach()
    return results


def least_squares(file: ReferenceFile) -> dict[str, Any]:
    """The layer of each case, and how far its residual is from that of the file's layer."""
    results: dict[str, Any] = {}
    for i, case in enumerate(file.config["cases"]):
        check_options(case, {"kind", "B", "N", "in_dim", "out_dim"}, f"cases[{i}]")
        x, y = (file.inputs[f"{i}.{name}"].flatten(0, -2) for name in ("x1", "x2"))
        solution = solve_pinv(x, y)
        results[f"out.{i}.weight"], results[f"out.{i}.bias"] = solution[:-1].T, solution[-1]
        reference = torch.cat([file.outputs[f"{i}.weight"].T, file.outputs[f"{i}.bias"][None]])
        residuals = [((with_bias(x) @ a - y).norm() / y.norm()).item() for a in (solution, reference)]
        results[f"residual.{i}"] = Check(abs(residuals[0] - residuals[1]), 1e-5, f"{case['kind']}: {residuals[0]:.6g}")
    return results


def least_squares_tolerance(file: ReferenceFile, key: str) -> float:
    """Ill-conditioned cases agree to 1e-3, the others to 1e-5."""
    return 1e-3 if file.config["cases"][int(key.split(".")[1])]["kind"] in ("rank", "outlier") else 1e-5


def enumeration(file: ReferenceFile) -> dict[str, Any]:
    """Cuts, layers and configurations of every case."""
    results: dict[str, Any] = {}
    for i, case in enumerate(file.config.get("plain", [])):
        found, models = paired(case["depth"], case["kernel_size"], case["stride"]), range(case["num_models"])
        every = {(front, end): found for front in models for end in models if front < end}
        listed = plain_configurations(len(models), every, case["nearest_stitching"])
        results |= {
            f"config.plain.{i}.pairs": [list(cut) for cut in found.cuts],
            f"config.plain.{i}.layer_of_pair": list(found.layer_of),
            f"config.plain.{i}.num_layers": found.num_layers,
            f"config.plain.{i}.configs": [as_released(c) for c in listed],
            f"out.plain.{i}.count": torch.tensor([len(listed), found.num_layers]),
        }
    for i, case in enumerate(file.config.get("stage", [])):
        stage = case["configs"][0]["stage_id"] if case["configs"] else 0
        listed, pairs = staged_configurations([[0] * stage + [depth] for depth in case["depths"]], [stage])
        results[f"config.stage.{i}.configs"] = [as_released(c) for c in listed if c.cuts]
        results[f"config.stage.{i}.num_layers"] = [[p.num_layers, [a, b]] for (_, a, b), p in pairs.items()]
    for i, case in enumerate(file.config.get("unpaired", [])):
        front, end = case["front_depth"], case["end_depth"]
        found = unpaired(front, end)
        results |= {
            f"config.unpaired.{i}.pairs": [list(cut) for cut in found.cuts],
            f"config.unpaired.{i}.layer_of_pair": list(found.layer_of),
            f"config.unpaired.{i}.num_layers": found.num_layers,
            f"config.unpaired.{i}.end_mapping": [block * front // end for block in range(end)],
        }
    return results


def network_tolerance(file: ReferenceFile, key: str) -> float:
    """Weights solved in float32, and what is computed with them, agree to 1e-4; everything else to 1e-5."""
    return 1e-4 if key.startswith(("out.ls.", "out.logits_after_ls")) else 1e-5
