"""Learning rates against numbers worked out by hand, parameter groups against their rules, Lightning's calls."""

import math
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from paperkit.errors import UserError
from paperkit.training.optim import OptimConfig, Schedule, build, clip_gradients, lightning_dict, step_schedule


def lrs(cfg: OptimConfig, count: int, steps: int, epochs: int, group: int = 0, **options: Any) -> list[float]:
    """The group's lr during the first `count` epochs or updates."""
    optimizer, schedule = build(options.pop("model", nn.Linear(2, 2)), cfg, steps, epochs, **options)
    values = []
    for done in range(1, count + 1):
        values.append(optimizer.param_groups[group]["lr"])
        schedule.advance(done)
    return values


def test_deit_steps_late_so_that_two_epochs_run_at_the_start_value() -> None:
    """5e-5 x 1024 / 512, five epochs from 1e-7, cosine over all 50 epochs down to an unscaled 1e-6, one epoch late."""
    cfg = OptimConfig(lr=5e-5, lr_per_512=True, warmup_epochs=5, warmup_lr=1e-7, min_lr=1e-6, step_per="epoch", lag=1)
    values = lrs(cfg, 50, steps=7, epochs=50, global_batch=1024)
    by_hand = {0: 1e-7, 1: 1e-7, 2: 2.008e-5, 5: 8.002e-5, 6: 9.757730e-5, 26: 5.05e-5, 49: 1.390323e-6}
    assert {epoch: values[epoch] for epoch in by_hand} == pytest.approx(by_hand, rel=1e-6)


def test_swin_steps_per_update_and_starts_its_cosine_after_the_warm_up() -> None:
    """5e-4, 5e-7 and 5e-6 all x 2; 10 updates an epoch: 50 of warm-up, then half a cosine over the other 450."""
    cfg = OptimConfig(lr=5e-4, lr_per_512=True, bounds_per_512=True, warmup_epochs=5, warmup_lr=5e-7, min_lr=5e-6)
    cfg.warmup_prefix = True
    values = lrs(cfg, 501, steps=10, epochs=50, global_batch=1024)
    by_hand = {0: 1e-6, 25: 5.005e-4, 49: 9.8002e-4, 50: 1e-3, 275: 5.05e-4, 499: 1.0012063e-5, 500: 1e-5}
    assert {update: values[update] for update in by_hand} == pytest.approx(by_hand, rel=1e-6)
    assert all(later < earlier for earlier, later in pairwise(values[50:]))


def test_resnet_steps_with_the_next_epoch() -> None:
    """0.05 as given, five epochs from 1e-5, cosine over all 30 epochs to 0, in time."""
    cfg = OptimConfig("sgd", lr=0.05, weight_decay=2e-5, warmup_epochs=5, warmup_lr=1e-5, step_per="epoch")
    values = lrs(cfg, 30, steps=7, epochs=30)
    by_hand = {0: 1e-5, 1: 0.010008, 4: 0.040002, 5: 0.04665064, 15: 0.025, 29: 1.369526e-4}
    assert {epoch: values[epoch] for epoch in by_hand} == pytest.approx(by_hand, rel=1e-6)


def test_unshifted_cosine_falls_where_the_warm_up_ends() -> None:
    """LITv2: w + t (b - w) / T_w, then m + (b - m)(1 + cos(pi t / T)) / 2; a group with b = m stays there."""
    offset, rest = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": list(rest.parameters())}, {"params": list(offset.parameters()), "lr": 1e-5}]
    cfg = OptimConfig(lr=1e-3, warmup_epochs=2, warmup_lr=1e-6, min_lr=1e-5)
    values = lrs(cfg, 80, steps=8, epochs=10, model=groups)
    by_hand = {8: 5.005e-4, 15: 9.375625e-4, 16: 9.054634e-4, 40: 5.05e-4}
    assert {update: values[update] for update in by_hand} == pytest.approx(by_hand, rel=1e-6)
    assert lrs(cfg, 80, steps=8, epochs=10, model=groups, group=1)[16:] == pytest.approx([1e-5] * 64)


def test_lag_repeats_the_first_value() -> None:
    cfg = OptimConfig(lr=1e-3, warmup_epochs=1, warmup_lr=1e-6)
    late = deepcopy(cfg)
    late.lag = 1
    in_time = lrs(cfg, 20, steps=5, epochs=4)
    assert lrs(late, 20, steps=5, epochs=4) == [in_time[0], *in_time[:-1]]


def test_constant_schedule_holds_after_its_warm_up() -> None:
    cfg = OptimConfig(lr=1e-3, schedule="constant", warmup_epochs=0.5, warmup_lr=0.0)
    assert lrs(cfg, 8, steps=4, epochs=2) == pytest.approx([0, 5e-4, *[1e-3] * 6])


def late_cosine(t: int, total: int, warm: int, top: float, start: float, end: float) -> float:
    """The rule in the loops of LITv2's and SPT's authors: linear to `top`, and a cosine that counts from 0."""
    if t < warm:
        return start + t * (top - start) / warm
    return end + (top - end) * (1 + math.cos(math.pi * min(t, total) / total)) / 2


@pytest.mark.parametrize("warm", [0, 3])
def test_litv2_steps_late_and_its_offset_group_ends_where_the_others_do(warm: int) -> None:
    """Group tops 5e-4 and 5e-6, bounds 5e-7 and 5e-6, all times batch / 512, by updates; the first two are equal."""
    steps, epochs, batch = 7, 10, 1024
    cfg = OptimConfig(
        lr=5e-4, lr_per_512=True, bounds_per_512=True, warmup_epochs=warm, warmup_lr=5e-7, min_lr=5e-6, lag=1
    )
    given = OptimConfig(lr=1e-3, warmup_epochs=warm, warmup_lr=1e-6, min_lr=1e-5, lag=1)  # multiplied beforehand
    for top, group in ((1e-3, 0), (1e-5, 1)):
        expected = [late_cosine(max(n - 1, 0), 70, 7 * warm, top, 1e-6, 1e-5) for n in range(75)]
        for config, options in ((cfg, {"global_batch": batch}), (given, {})):
            groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)]
            groups[1]["lr"] = 1e-5  # type: ignore[assignment]  # the weights of the offset convolutions
            values = lrs(config, 75, steps=steps, epochs=epochs, model=groups, group=group, **options)
            assert values == pytest.approx(expected, rel=1e-14, abs=1e-19)


@pytest.mark.parametrize(("epochs", "warm", "top"), [(100, 10, 1e-3), (20, 5, 5e-4)])
def test_spt_holds_a_rate_for_an_epoch_one_epoch_late(epochs: int, warm: int, top: float) -> None:
    """From 1e-6, cosine over all epochs down to 1e-5; after the last epoch it stays there."""
    cfg = OptimConfig(lr=top, warmup_epochs=warm, warmup_lr=1e-6, min_lr=1e-5, step_per="epoch", lag=1)
    values = lrs(cfg, epochs + 3, steps=1, epochs=epochs)
    assert values[:2] == [1e-6, 1e-6] and values[epochs + 1 :] == [1e-5, 1e-5]
    expected = [late_cosine(max(epoch - 1, 0), epochs, warm, top, 1e-6, 1e-5) for epoch in range(epochs + 3)]
    assert values == pytest.approx(expected, rel=1e-14, abs=1e-18)


def test_lr_scale_multiplies_every_value_and_survives_a_reload() -> None:
    """SN-Net's Swin: anchors at 0.1 of the scheduled value, during warm-up and at the minimum too."""
    anchors, stitches = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [
        {"params": list(anchors.parameters()), "lr_scale": 0.1, "weight_decay": 0.0},
        {"params": list(stitches.parameters())},
    ]
    cfg = OptimConfig(lr=1e-3, warmup_epochs=1, warmup_lr=1e-6, min_lr=1e-5)
    slow, fast = (lrs(cfg, 21, steps=5, epochs=4, model=groups, group=group) for group in (0, 1))
    assert slow == pytest.approx([0.1 * value for value in fast])
    assert fast[-1] == pytest.approx(1e-5)

    optimizer, schedule = build(groups, cfg, 5, 4)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05]
    assert "lr" not in groups[1], "the caller's groups were written into"
    schedule.advance(7)
    again, resumed = build(groups, cfg, 5, 4)
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert [group["lr"] for group in again.param_groups] == [slow[7], fast[7]]
    resumed.advance(8)
    assert [group["lr"] for group in again.param_groups] == [slow[8], fast[8]]


def tiny_vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=12, depth=2, num_heads=2, num_classes=3)


def test_decay_spares_vectors_biases_and_what_the_model_names() -> None:
    model = tiny_vit()
    model.head.bias.requires_grad_(False)
    optimizer, _ = build(model, OptimConfig(), 5, 4)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if name == "head.bias":
            assert id(parameter) not in decay
        else:
            spared = parameter.ndim <= 1 or name in ("pos_embed", "cls_token")
            assert decay[id(parameter)] == (0.0 if spared else 0.05), name


def test_layer_decay_reaches_the_learning_rates() -> None:
    """Depth 2: embedding, two blocks, head; factor 0.5 a layer, on top of the schedule."""
    model = tiny_vit()
    optimizer, schedule = build(model, OptimConfig(lr=1e-3, layer_decay=0.5), 5, 4)
    schedule.advance(10)
    lr = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    half = 0.5e-3  # the middle of the cosine
    assert lr[id(model.head.weight)] == pytest.approx(half)
    assert lr[id(model.blocks[1].mlp.fc1.weight)] == pytest.approx(half / 2)
    assert lr[id(model.blocks[0].mlp.fc1.weight)] == pytest.approx(half / 4)
    assert lr[id(model.patch_embed.proj.weight)] == pytest.approx(half / 8)


def test_options_reach_the_optimiser() -> None:
    optimizer, _ = build(nn.Linear(2, 2), OptimConfig("adamw", betas=(0.8, 0.9), eps=1e-5, fused=True), 5, 4)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-5
    assert optimizer.defaults["fused"] is True
    optimizer, _ = build(nn.Linear(2, 2), OptimConfig("sgd", momentum=0.7), 5, 4)
    assert optimizer.defaults["momentum"] == 0.7
    assert optimizer.defaults["nesterov"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "adamww"}, r"optimizer 'adamww' is unknown to timm; did you mean adamw"),
        ({"lr": 0.0}, r"lr 0\.0 must be positive"),
        ({"weight_decay": -1.0}, "must not be negative"),
        ({"lr_per_512": True}, "lr_per_512 needs the global batch size"),
        ({"bounds_per_512": True}, "bounds_per_512 scales with lr_per_512, which is off"),
        ({"warmup_epochs": 4, "warmup_prefix": True}, "a warm-up of 4 epochs leaves none of 4 epochs"),
        ({"name": "lion", "fused": True}, "optimizer lion has no fused form"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(nn.Linear(2, 2), OptimConfig(**change), 5, 4)


def test_wrong_models_and_lengths_are_refused() -> None:
    with pytest.raises(UserError, match="not 0 and 4"):
        build(nn.Linear(2, 2), OptimConfig(), 0, 4)
    with pytest.raises(UserError, match="layer_decay builds its own parameter groups"):
        build([{"params": list(nn.Linear(2, 2).parameters())}], OptimConfig(layer_decay=0.5), 5, 4)
    with pytest.raises(TypeError, match="timm would miss no_weight_decay"):
        build(Learner(OptimConfig()), OptimConfig(), 5, 4)


class Learner(pl.LightningModule):
    def __init__(self, cfg: OptimConfig, epochs: int = 4) -> None:
        super().__init__()
        self.net, self.cfg, self.epochs = nn.Linear(2, 2), cfg, epochs
        self.lrs: list[float] = []
        self.shares: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.lrs.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return lightning_dict(*build(self.net, self.cfg, 3, self.epochs))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        assert isinstance(scheduler, Schedule)
        step_schedule(scheduler, self.trainer)

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any) -> None:
        clip_gradients(self, optimizer, self.cfg, gradient_clip_val, gradient_clip_algorithm)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        weight = self.net.weight
        if weight.grad is not None:
            self.shares.append((weight.grad.norm(dim=1) / weight.detach().norm(dim=1)).max().item())


def fit(model: Learner, epochs: int, folder: Path, resume: Path | None = None, **options: Any) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=folder, **quiet, **options)
    generator = torch.Generator().manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(6, 2, generator=generator)), batch_size=1)
    trainer.fit(model, data, ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("step_per", ["step", "epoch"])
@pytest.mark.parametrize("lag", [0, 1])
def test_lightning_calls_it_at_the_right_moments(tmp_path: Path, step_per: str, lag: int) -> None:
    """Six batches in twos make three updates an epoch: in one go, resumed after two epochs, and by hand."""
    cfg = OptimConfig(lr=1e-2, warmup_epochs=1, step_per=step_per, lag=lag)  # type: ignore[arg-type]
    whole = Learner(cfg)
    fit(whole, 4, tmp_path, accumulate_grad_batches=2)
    if step_per == "step":
        by_hand = [lr for lr in lrs(cfg, 12, steps=3, epochs=4) for _ in range(2)]
    else:
        by_hand = [lr for lr in lrs(cfg, 4, steps=3, epochs=4) for _ in range(6)]
    assert whole.lrs == by_hand

    first, second = Learner(cfg), Learner(cfg)
    fit(first, 2, tmp_path, accumulate_grad_batches=2).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, 4, tmp_path, tmp_path / "half.ckpt", accumulate_grad_batches=2)
    assert first.lrs + second.lrs == by_hand


def test_adaptive_clipping_bounds_each_row(tmp_path: Path) -> None:
    """Brock et al., equation 3: no row's gradient is longer than the factor times the row (which here exceeds 1e-3)."""
    torch.manual_seed(0)
    free, clipped = Learner(OptimConfig(lr=1e-4)), Learner(OptimConfig(lr=1e-4, agc=0.01))
    fit(free, 1, tmp_path)
    fit(clipped, 1, tmp_path)
    assert max(free.shares) > 0.05
    assert max(clipped.shares) == pytest.approx(0.01, rel=1e-3)


def test_trainers_clipping_is_kept_and_both_at_once_refused(tmp_path: Path) -> None:
    model = Learner(OptimConfig(lr=1e-4))
    fit(model, 1, tmp_path, gradient_clip_val=1e-3)
    assert max(model.shares) < 0.01
    with pytest.raises(UserError, match=r"agc 0\.01 and gradient_clip_val 1\.0 both clip"):
        fit(Learner(OptimConfig(agc=0.01)), 1, tmp_path, gradient_clip_val=1.0)
