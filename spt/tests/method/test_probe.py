"""All that is counted gets a gradient, on backbones that read the weight of a layer themselves too; or is refused."""

import pytest
import timm
import torch
from made import CLASSES, small_lists, spt, tiny_vit
from torch import Tensor, nn
from torch.nn import functional as F

from paperkit.errors import UserError
from spt.method.probe import probe, unreached
from spt.method.sensitivity import measure_sensitivities, reset_head
from spt.models.spt_model import SPTConfig, SPTModel, get_spt_model

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
WINDOWS = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
BACKBONES = {
    "beit_base_patch16_224": SMALL,
    "eva_giant_patch14_224": {**SMALL, "mlp_ratio": 4},
    "swinv2_tiny_window8_256": WINDOWS,
    "swinv2_cr_tiny_224": WINDOWS,
    "deit_tiny_distilled_patch16_224": SMALL,
}


def built(name: str, **options: object) -> tuple[SPTModel, Tensor, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, **BACKBONES[name])
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name and parameter_name.endswith("weight"):
            nn.init.normal_(parameter, 1.0, 0.1)  # SwinV2's are zero at first, and no gradient passes them
    reset_head(model)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    fixed = ("cls_token",) if any("cls_token" in n for n, _ in model.named_parameters()) else ()
    values = measure_sensitivities(model, [(images, labels)], fixed=fixed)
    config = SPTConfig(budget=3000, r=2, fixed=fixed, drop=0, drop_path=0, init="official", **options)
    return get_spt_model(model, config, values), images, labels


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("kind", ["lora", "none"])
def test_all_that_is_counted_learns_and_merges(name: str, kind: str) -> None:
    """Modules and entries on a `qkv` whose weight the model multiplies by itself too (BEiT, EVA, SwinV2)."""
    tuned, images, labels = built(name, structured_type=kind)
    F.cross_entropy(tuned.train()(images), labels).backward()
    trained = {n: p for n, p in tuned.base.named_parameters() if p.requires_grad}
    assert any(".qkv." in n and ("structured" in n or "sparse" in n) for n in trained)
    for parameter_name, parameter in trained.items():
        assert parameter.grad is not None, parameter_name
        if ".qkv.q." in parameter_name or ".qkv.v." in parameter_name:
            assert bool(parameter.grad.any()), parameter_name
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.02 * torch.randn(parameter.shape))
        before = tuned.eval()(images)
        torch.testing.assert_close(tuned.merge_and_unload().eval()(images), before, rtol=1e-4, atol=1e-4)


def test_entries_of_a_weight_that_the_model_reads_have_the_dense_gradient() -> None:
    tuned, images, labels = built("beit_base_patch16_224", structured_type="none")
    F.cross_entropy(tuned.eval()(images), labels).backward()
    part = tuned.base.get_submodule("blocks.0.attn.qkv.v")
    plain = timm.create_model("beit_base_patch16_224", num_classes=CLASSES, **SMALL).eval()
    plain.load_state_dict({**plain.state_dict(), **tuned.unload().state_dict()})
    fused = plain.blocks[0].attn.qkv.weight
    F.cross_entropy(plain(images), labels).backward()
    row, col = part.sparse_weight_index.long()
    torch.testing.assert_close(part.sparse_weight.grad, fused.grad[64:][row, col], rtol=1e-4, atol=1e-6)


def test_an_adapter_on_such_a_layer_is_refused_by_name(lists) -> None:
    """It is no part of a weight: refused in the first training step, and by the command before training."""
    tuned, images, _ = built("beit_base_patch16_224", structured_type="adapter")
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv\.[qkv] cannot be tuned: .* gets no gradient"):
        tuned.train()(images)
    options = {"backbone.arch": "beit_base_patch16_224", "method.structured_type": "adapter", "backbone.drop_path": "0"}
    given = small_lists(lists, **options)
    given = [*given[: given.index("--backbone.file")], *given[given.index("--backbone.file") + 2 :]]
    line = spt.refused("train", "--name", "beit", *given, cwd=lists)
    assert "cannot be tuned" in line and "gets no gradient" in line and "blocks." in line
    assert not list((lists / "runs" / "spt" / "beit").glob("checkpoints/*"))


class Direct(nn.Module):
    """An MLP that reads the weight of its second layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.fc1(x).relu(), self.fc2.weight, self.fc2.bias)


def test_any_layer_that_is_not_called_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ModuleList([Direct()])[0], nn.Linear(16, 4))
    holder = nn.ModuleDict({"blocks": nn.ModuleList([model[0]]), "head": model[1]})
    holder.forward = lambda x: holder["head"](holder["blocks"][0](x))  # type: ignore[method-assign]
    x, y = torch.randn(6, 16), torch.tensor([0, 1, 2, 3, 0, 1])
    values = measure_sensitivities(holder, [(x, y)], fixed=())
    tuned = get_spt_model(holder, SPTConfig(budget=200, r=1, fixed=(), structured_type="none"), values)
    with pytest.raises(UserError, match=r"blocks\.0\.fc2 cannot be tuned"):
        tuned.train()(x)


def test_probe_changes_nothing() -> None:
    model = tiny_vit(drop_path_rate=0.5).eval()
    state, random = {n: v.clone() for n, v in model.state_dict().items()}, torch.get_rng_state()
    assert probe(model, torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))) == []
    assert torch.equal(random, torch.get_rng_state()) and not model.training
    assert all(torch.equal(value, state[n]) for n, value in model.state_dict().items())
    model.unused = nn.Parameter(torch.zeros(1))
    assert unreached(model, model(torch.zeros(1, 3, 16, 16))) == ["unused"]
