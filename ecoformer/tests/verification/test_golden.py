"""The authors' tensors: every kind recomputes, and every altered result is noticed."""

import json
from pathlib import Path

import pytest
import torch
from made import GOLDEN
from safetensors.torch import save_file

from ecoformer.method.similarity import pair_labels
from ecoformer.models.pvt import PVTv2
from ecoformer.models.released import fit_released
from ecoformer.verification.kinds import KINDS
from paperkit.testing.golden import (
    changed,
    check_altered_results_fail,
    check_unknown_option_is_refused,
    check_verifies,
    each_golden,
    read_golden,
    verified,
)


@each_golden(GOLDEN)
def test_matches_reference(path: Path) -> None:
    check_verifies(path, KINDS)


@each_golden(GOLDEN, "*.safetensors", but=("pathfinder32_samples.safetensors",))
def test_altered_result_fails(path: Path, tmp_path: Path) -> None:
    check_altered_results_fail(path, KINDS, tmp_path, by=1e-3)


@each_golden(GOLDEN, "*.safetensors")
def test_unknown_option_is_refused(path: Path, tmp_path: Path) -> None:
    check_unknown_option_is_refused(path, KINDS, tmp_path)


@pytest.mark.parametrize("key", ["A", "mvec"])
def test_altered_fit_fails(key: str, tmp_path: Path) -> None:
    path = GOLDEN / "hash_fit_official_lr.safetensors"
    value = read_golden(path)[0][f"sd_after.{key}"].clone()
    value.view(-1)[0] += 1e-4
    good, printed = verified(changed(path, tmp_path, tensors={f"sd_after.{key}": value}), KINDS)
    assert not good and f"FAIL  sd_after.{key}" in printed


@pytest.mark.parametrize(("file", "where"), [("energy_table", "mul"), ("energy_table", "area"), ("listops", "target")])
def test_altered_numbers_fail(file: str, where: str, tmp_path: Path) -> None:
    content = json.loads((GOLDEN / f"{file}.json").read_text())
    if file == "energy_table":
        content["models"] = {"pvt_v2_b0_ecoformer": content["models"]["pvt_v2_b0_ecoformer"]}
        content["models"]["pvt_v2_b0_ecoformer"][where] *= 1 + 1e-9
    else:
        example = content["short"]["examples"][-1]
        example[where] = (example[where] + 1) % 10
    path = tmp_path / f"{file}.json"
    path.write_text(json.dumps(content))
    good, printed = verified(path, KINDS)
    assert not good and "FAIL" in printed


def test_other_lengths_of_codes(tmp_path: Path) -> None:
    """B0 with 8 bits: every term with b falls, and nothing else."""
    from ecoformer.method.energy import ledger
    from ecoformer.models.architectures import build

    row = ledger(lambda: build("pvt_v2_b0_ecoformer_nbits8")).as_dict()
    names = ("params", "layer_flops", "mul", "add", "energy_pj", "area")
    path = tmp_path / "energy_table_8.json"
    path.write_text(json.dumps({"models": {"pvt_v2_b0_ecoformer_nbits8": {name: row[name] for name in names}}}))
    check_verifies(path, KINDS)


def test_pathfinder_settings_are_checked(tmp_path: Path) -> None:
    path = GOLDEN / "pathfinder32_samples.safetensors"
    good, printed = verified(changed(path, tmp_path, config=lambda c: c.update(window=16)), KINDS)
    assert not good and "FAIL  settings" in printed
    dark = read_golden(path)[0]["out.images"] // 2
    good, printed = verified(changed(path, tmp_path, tensors={"out.images": dark}), KINDS)
    assert not good and "FAIL  out.images" in printed and "FAIL  mean grey" in printed


def test_float32_forward_is_close() -> None:
    """`verify` works in float64; the float32 pass that users run keeps every code and stays within 1e-5."""
    tensors, metadata = read_golden(GOLDEN / "pvtv2_tiny_ecoformer.safetensors")
    c = json.loads(metadata["config"])
    model = PVTv2(
        c["dims"], c["heads"], c["mlp"], c["depths"], nbits=c["nbits"], supports=c["m"], num_classes=10
    ).eval()
    state = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
    model.load_state_dict(fit_released(state, model))
    error = (model(tensors["in.x"]) - tensors["out.y"]).abs().max()
    assert error <= 1e-5 * tensors["out.y"].abs().max()
    assert torch.is_floating_point(error)


def test_a_long_fit_with_small_steps(tmp_path: Path) -> None:
    """The reference rounds A at every step; here in its order, with a large A, whose roundings are large."""
    torch.manual_seed(0)
    u, A = torch.nn.functional.normalize(torch.randn(2, 2, 49, 8), dim=-1), 4 * torch.randn(2, 2, 6)
    anchor, labels = u[:1, :, :6], pair_labels(u, 4).dense()
    distance = (u[:, :, :, None] - anchor[:, :, None]).square().sum(-1)
    kernel = torch.exp(-distance / (2 * distance.mean((2, 3), keepdim=True)))
    mvec = kernel.mean(2, keepdim=True).mean(0, keepdim=True)
    kernel, residual, after = kernel - mvec, 2 * labels, A.clone()
    before, behind = [], []

    def loss_of(y: torch.Tensor) -> torch.Tensor:
        return -torch.einsum("bhn,bhnk,bhk->bh", y, residual, y).mean() / (2 * 49)

    for r in range(2):
        a = A[:, r].clone().requires_grad_()
        optimizer = torch.optim.SGD([a], lr=0.0005, momentum=0.9, nesterov=True)
        for _ in range(200):
            optimizer.zero_grad()
            loss_of(2 / (1 + torch.exp(-torch.einsum("bhnm,hm->bhn", kernel, a))) - 1).backward()
            optimizer.step()
        old, new = (torch.einsum("bhnm,hm->bhn", kernel, x).gt(0) * 2.0 - 1 for x in (A[:, r], a.detach()))
        before.append(loss_of(old))
        behind.append(loss_of(new))
        kept = behind[-1] < before[-1]
        after[:, r] = a.detach() if kept else A[:, r]
        y = new if kept else old
        residual = residual - y[..., None] * y[..., None, :]
    assert not torch.equal(after, A)
    config = dict(heads=2, head_dim=8, nbits=2, m=6, topk=4, learning_rate=0.0005, iterations=200)
    tensors = {"sd_before.A": A, "sd_after.A": after, "sd_after.mvec": mvec, "sd_after.anchor": anchor, "in.x": u}
    tensors |= {"in.anchor": anchor, "in.perm": torch.arange(49), "in.labels": labels, "out.residual": residual}
    tensors |= {"out.loss_before": torch.stack(before), "out.loss_after": torch.stack(behind)}
    path = tmp_path / "fit.safetensors"
    metadata = {"kind": "hash_fit", "config": json.dumps(config)}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
    check_verifies(path, KINDS)
