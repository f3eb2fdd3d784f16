"""The authors' tensors: every kind recomputes, and every altered result is noticed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from focusformer.method.architecture import Architecture, SuperSizes
from focusformer.method.supernet import Supernet
from focusformer.method.unsampled import Unsampled, clear_gradients
from focusformer.verification.kinds import KINDS
from paperkit.testing.golden import (
    changed,
    check_altered_results_fail,
    check_unknown_option_is_refused,
    check_verifies,
    each_golden,
    read_golden,
    verified,
)

GOLDEN = Path(__file__).parents[1] / "golden"


@each_golden(GOLDEN)
def test_matches_reference(path: Path) -> None:
    check_verifies(path, KINDS)


@each_golden(GOLDEN, "*.safetensors", but=("train_steps*",))
def test_altered_result_fails(path: Path, tmp_path: Path) -> None:
    check_altered_results_fail(path, KINDS, tmp_path, by=2e-3)


@each_golden(GOLDEN, "*.safetensors")
def test_unknown_option_is_refused(path: Path, tmp_path: Path) -> None:
    check_unknown_option_is_refused(path, KINDS, tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("supernet", lambda c: c["model"].update(depth=1000), "the most that this kind takes is 64"),
        ("supernet", lambda c: c["model"].update(rpe="2d"), "unknown option 'rpe' in model"),
        ("supernet", lambda c: c["cases"][0].update(embed_dim=[512]), "embedding width 512 is above"),
        ("supernet", lambda c: c["cases"][0].pop("mlp_ratio"), "needs layer_num, embed_dim, num_heads and mlp_ratio"),
        ("encoder_layer", lambda c: c.update(num_heads=3), "3 heads of 64 do not fit into the width 128"),
        ("linear_super", lambda c: c["cases"].append([13, 4]), "case 13, 4 is above 12, 20"),
        ("attention_super", lambda c: c["cases"][0].update(rpe=1), "unknown option 'rpe' in cases.0"),
        ("counts", lambda c: c.update(sequence_length_argument=64), "counts for 64 patches, 196 in the images"),
        ("counts", lambda c: c["spaces"]["T"]["supernet"].update(DEPTH=13), "depth 14 is above the supernet's 13"),
        ("evolution_search", lambda c: c.update(space="X"), "space 'X' does not exist; known: T, S, B"),
        ("evolution_search", lambda c: c.update(param_limits_M=1.0), "keep the constraint"),
        ("train_steps", lambda c: c["model"].update(drop_path_rate=0.1), "without dropout and drop path"),
    ],
)
def test_impossible_option_is_one_line(file: str, change: object, message: str, tmp_path: Path) -> None:
    good, printed = verified(changed(GOLDEN / f"{file}.safetensors", tmp_path, config=change), KINDS)
    assert not good and message in printed


def trained(tensors: dict[str, torch.Tensor], config: dict[str, object], rule: str) -> dict[str, torch.Tensor]:
    """Weights after the steps of `train_steps`, as float32 takes them.

    Args:
        rule: of `clear_gradients`, or "zeros" for zero gradients also where no step has been, or "no decay".
    """
    m = dict(config["model"])  # type: ignore[call-overload]
    sizes = SuperSizes(m["embed_dim"], m["depth"], m["num_heads"], m["mlp_ratio"], img_size=m["img_size"],
                       patch_size=m["patch_size"], num_classes=m["num_classes"],
                       max_relative_position=m["max_relative_position"])  # fmt: skip
    network = Supernet(sizes, relative="official")
    network.load_state_dict({name[3:]: t for name, t in tensors.items() if name.startswith("sd.")})
    decay = 0.0 if rule == "no decay" else config["weight_decay"]
    optimizer = torch.optim.AdamW(network.parameters(), lr=config["lr"], weight_decay=decay)  # type: ignore[arg-type]
    cleared: Unsampled = "skip" if rule == "skip" else "decay"
    for i, case in enumerate(config["cases"]):  # type: ignore[arg-type, var-annotated]
        clear_gradients(optimizer, cleared)
        if rule == "zeros":
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)
        logits = network(tensors[f"in.x.{i}"], Architecture.from_official(case))
        torch.nn.functional.cross_entropy(logits, tensors[f"in.target.{i}"]).backward()
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("first", ["whole", "one layer"])
@pytest.mark.parametrize("rule", ["decay", "zeros", "skip", "no decay"])
def test_training_steps_tell_the_rules_apart(rule: str, first: str, tmp_path: Path) -> None:
    """A file made by another rule than the released one fails wherever the rules differ."""
    tensors, metadata = read_golden(GOLDEN / "train_steps.safetensors")
    config = json.loads(metadata["config"])
    order = [0, 1, 2] if first == "whole" else [1, 0, 1]
    config["cases"] = [config["cases"][i] for i in order]
    kept = {name: t for name, t in tensors.items() if name.startswith(("sd.", "in."))}
    for i, after in enumerate(trained(kept, config, rule).items()):
        name, value = after
        if i == 0 or name.startswith("blocks.1"):
            kept[f"out.after.{name}"] = value
    path = tmp_path / "train_steps.safetensors"
    save_file(kept, path, {"kind": "train_steps", "config": json.dumps(config)})
    good, printed = verified(path, KINDS)
    same = rule == "decay" or (rule == "zeros" and first == "whole")
    assert good == same, printed


def test_a_supernet_of_other_options(tmp_path: Path) -> None:
    """Float32 as users run it and the float64 of `verify` agree for a square of 9 patches, clipped at 1, and one layer
    above the drawn ones; images of one channel."""
    torch.manual_seed(5)
    model = dict(img_size=12, patch_size=4, in_chans=1, num_classes=3, embed_dim=136, depth=3, num_heads=2,
                 mlp_ratio=1.5, qkv_bias=True, gp=True, relative_position=True, change_qkv=True, abs_pos=False,
                 max_relative_position=1, scale=True, pre_norm=False)  # fmt: skip
    sizes = SuperSizes(136, 3, 2, 1.5, img_size=12, patch_size=4, in_chans=1, num_classes=3, abs_pos=False,
                       max_relative_position=1, scale=True, pre_norm=False)  # fmt: skip
    network = Supernet(sizes, relative="official").eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    cases = [Architecture(131, (2, 1), (0.77, 1.5)), Architecture(5, (1,), (1.0,))]
    images, target = torch.randn(2, 1, 12, 12), torch.tensor([0, 2])
    tensors = {f"sd.{name}": value for name, value in network.state_dict().items()}
    tensors |= {"in.x": images, "in.target": target}
    for i, a in enumerate(cases):
        network.zero_grad()
        logits = network(images, a)
        torch.nn.functional.cross_entropy(logits, target).backward()
        tensors |= {f"out.logits.{i}": logits, f"grad.cls_token.{i}": network.cls_token.grad}
        tensors[f"grad.blocks.0.attn.qkv.weight.{i}"] = network.blocks[0].attn.qkv.weight.grad
    kept = {name: value.detach().clone() for name, value in tensors.items()}
    config = {"model": model, "cases": [a.to_official() for a in cases]}
    path = tmp_path / "supernet.safetensors"
    save_file(kept, path, {"kind": "supernet", "config": json.dumps(config)})
    check_verifies(path, KINDS)
