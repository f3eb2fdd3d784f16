"""The arms of the embedded experiment: equal budgets, really trained counts, the same start."""

import pytest
import torch

from spt.experiment.arms import BUILDERS, Setting, build_arm, wrong_places
from spt.experiment.digit_tasks import CLASSES, make_task
from spt.experiment.run import in_batches, small_vit
from spt.experiment.settings import ARMS
from spt.method.sensitivity import measure_sensitivities, reset_head


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    model = small_vit(CLASSES["flip"])
    reset_head(model)
    values = measure_sensitivities(model, in_batches(make_task("flip", 0).train, 32)).values
    return Setting(model, values, values, 700, 80, 0)


@pytest.mark.parametrize("name", ARMS)
def test_arm_spends_what_it_says(name: str, setting) -> None:
    arm = build_arm(name, setting)
    trained = sum(
        p.numel()
        for n, p in arm.model.named_parameters()
        if p.requires_grad and "head" not in n and "cls_token" not in n
    )
    if name == "full fine-tuning":
        assert trained == arm.spent > 50_000
        return
    assert arm.spent <= 700
    if name == "peft AdaLoRA":
        assert trained == 2 * arm.spent  # starts at twice the rank that it ends at
    elif name.startswith("SPT"):
        lost = sum(i.numel() for n, i in arm.selection.entries.items() if "norm" in n)
        assert trained == arm.spent - lost
    else:
        assert trained == arm.spent
    heads = [p for n, p in arm.model.named_parameters() if "head" in n and p.requires_grad]
    assert sum(p.numel() for p in heads) == 33 * 10
    assert any("cls_token" in n and p.requires_grad for n, p in arm.model.named_parameters())
    assert list(BUILDERS) == list(ARMS)


@pytest.mark.parametrize("name", ARMS)
def test_arm_starts_at_the_same_function(name: str, setting) -> None:
    if name == "VPT-Deep":
        pytest.skip("prompts change the function from the start, by their nature")
    images = make_task("flip", 0).train[0][:4]
    with torch.no_grad():
        torch.testing.assert_close(
            build_arm(name, setting).model.eval()(images), setting.backbone.eval()(images), atol=1e-5, rtol=1e-5
        )


def test_wrong_places_keep_the_structure(setting) -> None:
    shuffled = wrong_places(setting.values, torch.Generator().manual_seed(0))
    assert list(shuffled) == list(setting.values)
    by_shape: dict = {}
    for name, value in setting.values.items():
        by_shape.setdefault(value.shape, ([], []))[0].append(value.flatten())
        by_shape[value.shape][1].append(shuffled[name].flatten())
    for old, new in by_shape.values():
        assert torch.equal(torch.cat(old).sort().values, torch.cat(new).sort().values)
    assert not torch.equal(shuffled["blocks.0.mlp.fc1.weight"], setting.values["blocks.0.mlp.fc1.weight"])
