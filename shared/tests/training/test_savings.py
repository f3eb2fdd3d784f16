"""What refuses what, each in one line that names both; and each switch in a model."""

import re
from typing import Any

import pytest
import timm
import torch
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paperkit.errors import UserError
from paperkit.training.optim import OptimConfig, build
from paperkit.training.savings import EMA, Savings, check
from paperkit.training.switches import apply, callbacks, hardest, sharpened

CPU = {"accelerator": "cpu"}
# switches, trainer options, what else there is to know, the two sides that the line must name
REFUSED: list[tuple[Savings, dict[str, Any], dict[str, Any], str, str]] = [
    (Savings(sam_rho=0.05), {"accumulate_grad_batches": 2}, {}, "sam_rho 0.05", "accumulate_grad_batches 2"),
    (Savings(sam_rho=0.05), {"precision": "16-mixed"}, {}, "sam_rho 0.05", "precision 16-mixed"),
    (Savings(sam_rho=0.05, keep_hardest=0.5), {}, {}, "sam_rho 0.05", "keep_hardest 0.5"),
    (Savings(sam_rho=0.05), {"strategy": "fsdp"}, {}, "sam_rho 0.05", "strategy fsdp"),
    (Savings(), {"precision": "16-mixed"}, {}, "precision 16-mixed", "CPU"),
    (Savings(), {"strategy": "fsdp"}, {}, "strategy fsdp", "CPU"),
    (Savings(keep_hardest=0.5), {}, {"mixing": True}, "keep_hardest 0.5", "mixup"),
    (Savings(keep_hardest=0.5), {}, {"distillation": True}, "keep_hardest 0.5", "distillation"),
    (Savings(compile=True), {}, {"refused": {"compile": "every step is another graph"}}, "compile", "another graph"),
]


@pytest.mark.parametrize(("savings", "trainer", "more", "one", "other"), REFUSED)
def test_what_cannot_work_together(
    savings: Savings, trainer: dict[str, Any], more: dict[str, Any], one: str, other: str
) -> None:
    with pytest.raises(UserError, match=f"{re.escape(one)}.*{re.escape(other)}"):
        check(savings, {**CPU, **trainer}, **more)


def test_averaging_and_sharded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, where fsdp itself would be fine."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    check(Savings(), {"strategy": "fsdp", "precision": "16-mixed"})
    with pytest.raises(UserError, match=r"ema.decay 0.99 and strategy fsdp"):
        check(Savings(), {"strategy": "fsdp"}, ema=EMA(0.99))


@pytest.mark.parametrize(
    ("savings", "ema", "line"),
    [
        (Savings(patch_drop=1.0), EMA(), "patch_drop 1.0 must be at least 0 and below 1"),
        (Savings(sam_rho=-1.0), EMA(), "sam_rho -1.0 must not be negative"),
        (Savings(keep_hardest=0.0), EMA(), "keep_hardest 0.0 must be above 0"),
        (Savings(), EMA(1.0), "ema.decay 1.0 must be at least 0 and below 1"),
        (Savings(), EMA(0.9, start_step=-1), "ema.start_step -1 must not be negative"),
        (Savings(), EMA(None, start_step=5), "ema.start_step 5 .* needs an ema.decay"),
    ],
)
def test_ranges(savings: Savings, ema: EMA, line: str) -> None:
    with pytest.raises(UserError, match=line):
        check(savings, CPU, ema=ema)


def test_what_works_together() -> None:
    every = Savings(checkpointing=True, attention="eager", channels_last=True, patch_drop=0.25, sam_rho=0.05)
    check(every, {**CPU, "precision": "bf16-mixed", "strategy": "ddp"}, ema=EMA(0.99), mixing=True)
    check(Savings(keep_hardest=0.5), {**CPU, "accumulate_grad_batches": 2})


def test_what_is_only_noted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    check(Savings(compile=True), CPU, sizes=[128, 224])
    notes = capsys.readouterr().err.splitlines()
    assert notes[0].startswith("note: compile and size_schedule: one compilation for each of [128, 224] px")
    assert notes[1].startswith("note: compile on a CPU")
    monkeypatch.setattr("paperkit.training.savings.cpu", lambda: {"flags": ["avx2"]})
    check(Savings(), {**CPU, "precision": "bf16-mixed"})
    assert "no bfloat16 instructions" in capsys.readouterr().err


def small(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, num_classes=5, **options)


@pytest.mark.parametrize(
    ("name", "savings", "line"),
    [
        ("twins_svt_small", Savings(checkpointing=True), "checkpointing: Twins has no activation checkpointing"),
        ("swin_tiny_patch4_window7_224", Savings(patch_drop=0.5), "patch_drop 0.5 needs a plain ViT"),
        ("resnet18", Savings(patch_drop=0.5), "patch_drop 0.5 needs a plain ViT.*ResNet is none"),
        ("resnet18", Savings(attention="eager"), "attention eager: ResNet has no fused attention"),
    ],
)
def test_models_that_cannot_take_a_switch(name: str, savings: Savings, line: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=line):
        apply(small(name), savings)
    with pytest.raises(UserError, match="Linear has no activation checkpointing"):
        apply(nn.Linear(2, 2), Savings(checkpointing=True))


def test_switches_of_a_model() -> None:
    vit = small("test_vit")
    apply(vit, Savings(checkpointing=True, attention="eager", patch_drop=0.5, channels_last=True))
    assert vit.grad_checkpointing
    assert not any(block.attn.fused_attn for block in vit.blocks)
    assert isinstance(vit.patch_drop, PatchDropout) and vit.patch_drop.num_prefix_tokens == vit.num_prefix_tokens
    assert vit.patch_embed.proj.weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    vit.patch_embed.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    tokens = []
    vit.norm.register_forward_hook(lambda _, x, y: tokens.append(y.shape[1]))
    images = torch.rand(2, 3, 160, 160)
    vit.train()(images)
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and torch.equal(seen[0], images)
    prefix = vit.num_prefix_tokens
    assert tokens == [prefix + 50], "half of the 100 tokens in training"
    vit.eval()(images)
    assert tokens[1] == prefix + 100


def test_compiling_keeps_the_keys() -> None:
    vit = small("test_vit")
    keys = list(vit.state_dict())
    apply(vit, Savings(compile=True))
    assert list(vit.state_dict()) == keys
    assert vit._compiled_call_impl is not None


def test_hardest_images_in_the_order_of_the_batch() -> None:
    """By hand, with dropout and batch statistics that must not be touched."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Dropout(0.9))
    model[0].eval()  # a frozen part stays frozen
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, labels = torch.randn(10, 4), torch.arange(10) % 3

    def losses(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x), y, reduction="none")

    found, found_labels = hardest(model, losses, images, labels, Savings(keep_hardest=0.3))
    model.eval()
    worst = sorted(losses(images, labels).argsort(descending=True)[:3].tolist())
    assert torch.equal(found, images[worst]) and torch.equal(found_labels, labels[worst])
    assert not found.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.train()
    model[0].eval()
    hardest(model, losses, images, labels, Savings(keep_hardest=0.3))
    assert [part.training for part in model] == [False, True, True] and model.training
    same, _ = hardest(model, losses, images, labels, Savings())
    assert same is images


def test_nothing_asked_for_changes_nothing() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    assert sharpened(optimizer, Savings()) is optimizer
    assert callbacks(EMA()) == []


def test_eight_bit_optimisers_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"bnbadamw8bit is bitsandbytes'.*pip install bitsandbytes"):
        build(nn.Linear(2, 2), OptimConfig(name="bnbadamw8bit"), 10, 1)
