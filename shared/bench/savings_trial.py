"""One training step of a small ViT on the digits under a switch: what `make shared-bench` times, weighs and trains.

The step makes the calls that Lightning's Trainer makes, in its order, so that nothing but the switch is measured.

As a program (`python shared/bench/savings_trial.py NAME`) it runs three steps of one variant in a process of its own,
whose peak memory its parent reads.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from paperkit.data.digits import DigitsData
from paperkit.data.resumable import SeededSampler
from paperkit.data.seeding import seed_generators
from paperkit.results.measure import mark_start
from paperkit.training.optim import OptimConfig, build
from paperkit.training.savings import Savings
from paperkit.training.switches import apply, hardest, sharpened


@dataclass(frozen=True)
class Size:
    """A plain ViT on the digits, enlarged to `image` pixels."""

    image: int
    patch: int
    width: int
    depth: int
    heads: int
    batch: int


LARGE = Size(image=96, patch=8, width=192, depth=6, heads=3, batch=8)  # 145 tokens: where time is measured
HEAVY = replace(LARGE, batch=32)  # where memory is: activations weigh more than the process around them
SMALL = Size(image=16, patch=4, width=48, depth=3, heads=2, batch=32)  # 17 tokens: what learns in seconds
ADAMW = OptimConfig(lr=3e-3, weight_decay=0.05, warmup_epochs=0.1)


@dataclass(frozen=True)
class Variant:
    """The plain step with one thing changed (or a recommended set).

    Args:
        name: as it stands in the table.
        savings, optim: see there; the warm-up is a share of the run.
        bf16: autocast to bfloat16, as precision bf16-mixed.
        accumulate: parts of the batch whose gradients are added up.
        ema: decay of averaged weights.
        clip: largest norm of the gradients.
        small_share: share of the run that trains on images of half the size.
    """

    name: str
    savings: Savings = field(default_factory=Savings)
    optim: OptimConfig = field(default_factory=lambda: ADAMW)
    bf16: bool = False
    accumulate: int = 1
    ema: float | None = None
    clip: float | None = None
    small_share: float = 0.0


BASE = Variant("plain step (AdamW, float32)")
AGAIN = replace(BASE, name="plain step again")  # the noise floor
RECOMMENDED = Variant(
    "recommended: bf16, fused AdamW, patch drop 0.25",
    savings=Savings(patch_drop=0.25),
    optim=replace(ADAMW, fused=True),
    bf16=True,
)
SWITCHES = [
    Variant("precision bf16-mixed", bf16=True),
    Variant("checkpointing", savings=Savings(checkpointing=True)),
    Variant("checkpointing, bf16-mixed", savings=Savings(checkpointing=True), bf16=True),
    Variant("accumulate_grad_batches 4", accumulate=4),
    Variant("attention eager", savings=Savings(attention="eager")),
    Variant("channels_last", savings=Savings(channels_last=True)),
    Variant("patch_drop 0.25", savings=Savings(patch_drop=0.25)),
    Variant("patch_drop 0.5", savings=Savings(patch_drop=0.5)),
    Variant("size_schedule: half size for half the run", small_share=0.5),
    Variant("keep_hardest 0.5", savings=Savings(keep_hardest=0.5)),
    Variant("sam_rho 0.05", savings=Savings(sam_rho=0.05)),
    Variant("ema.decay 0.98", ema=0.98),
    Variant("compile", savings=Savings(compile=True)),
    Variant("gradient_clip_val 1", clip=1.0),
    Variant("optim.fused", optim=replace(ADAMW, fused=True)),
    Variant("optim.name sgd, lr 0.1", optim=replace(ADAMW, name="sgd", lr=0.1)),
    Variant("optim.name lars, lr 1", optim=replace(ADAMW, name="lars", lr=1.0)),
    Variant("optim.name lion, lr 3e-4", optim=replace(ADAMW, name="lion", lr=3e-4)),
    Variant("optim.name adafactorbv", optim=replace(ADAMW, name="adafactorbv")),
    Variant("optim.name lamb, lr 1e-2", optim=replace(ADAMW, name="lamb", lr=1e-2)),
    Variant("optim.name muon", optim=replace(ADAMW, name="muon")),
    RECOMMENDED,
]
VARIANTS = {variant.name: variant for variant in [BASE, AGAIN, *SWITCHES]}


class Trial:
    """A model, its optimiser, and the step.

    Args:
        variant, size: what and on what.
        seed: of weights, order, noise and everything that a step draws.
        steps: length of the run, for the schedules of rate and size.
        device: `cpu`, `cuda` or `meta`.
    """

    def __init__(self, variant: Variant, size: Size, seed: int = 0, steps: int = 100, device: str = "cpu") -> None:
        self.variant, self.size, self.seed, self.steps, self.device = variant, size, seed, steps, torch.device(device)
        seed_generators(seed)
        self.model = timm.create_model(
            "vit_tiny_patch16_224",
            in_chans=1,
            num_classes=10,
            img_size=size.image,
            patch_size=size.patch,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
            dynamic_img_size=variant.small_share > 0,
        ).to(self.device)
        apply(self.model, variant.savings)
        optimizer, self.schedule = build(self.model, variant.optim, steps_per_epoch=steps, epochs=1)
        self.optimizer = sharpened(optimizer, variant.savings)
        self.average = None
        if variant.ema is not None:
            self.average = AveragedModel(self.model, avg_fn=get_ema_avg_fn(variant.ema), use_buffers=True)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 1, S, S) and labels (B,), without end; S is half the size for the first `small_share`."""
        data = DigitsData(self.size.batch, seed=self.seed, size=self.size.image)
        small = DigitsData(self.size.batch, seed=self.seed, size=self.size.image // 2)
        loaders = {True: small.train_dataloader(), False: data.train_dataloader()}
        for epoch in range(math.ceil(self.steps / data.steps_per_epoch)):
            loader = loaders[epoch * data.steps_per_epoch < self.variant.small_share * self.steps]
            assert isinstance(loader.sampler, SeededSampler)
            loader.sampler.set_epoch(epoch)
            yield from ((images.to(self.device), labels.to(self.device)) for images, labels in loader)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One update."""

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            total = images.new_zeros(())
            parts = self.variant.accumulate
            for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
                loss = self.loss(x, y)
                loss.backward()
                total += loss.detach()
            if self.variant.clip is not None:
                clip_grad_norm_(self.model.parameters(), self.variant.clip)
            return total

        if self.variant.savings.sam_rho:
            self.optimizer.step(closure)  # type: ignore[arg-type]  # torch's stub wants a float
        else:
            closure()
            self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of one part of a batch, on its way to the backward pass."""
        where = self.device.type if self.device.type == "cuda" else "cpu"  # the meta device knows no autocast
        with torch.autocast(where, torch.bfloat16, enabled=self.variant.bf16):
            images, labels = hardest(self.model, self._losses, images, labels, self.variant.savings)
            return cross_entropy(self.model(images), labels) / self.variant.accumulate

    def _losses(self, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self.model(images), labels, reduction="none")

    def train(self, advance: Callable[[int], None] = lambda _: None) -> tuple[float, float]:
        """The whole run; returns loss and accuracy (%) on the 600 test images."""
        for done, (images, labels) in zip(range(self.steps), self.batches(), strict=False):
            torch.manual_seed(seed_generators(self.seed, done))  # of accelerators as well
            self.step(images, labels)
            self.schedule.advance(done + 1)
            advance(1)
        return self.evaluate()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy (%) of the weights, or of their average, at full size."""
        model: nn.Module = self.model if self.average is None else self.average
        model.eval()
        (images, labels), *_ = DigitsData(size=self.size.image).test_dataloader()
        logits = model(images.to(self.device)).float()
        labels = labels.to(self.device)
        return float(cross_entropy(logits, labels)), 100 * float((logits.argmax(1) == labels).float().mean())

    def fixed_batch(self) -> tuple[Tensor, Tensor]:
        """One and the same batch, for measuring; of half the size where the variant has such a phase."""
        side = self.size.image // 2 if self.variant.small_share else self.size.image
        images = torch.rand(self.size.batch, 1, side, side, device=self.device)
        return images, torch.arange(self.size.batch, device=self.device) % 10

    def fixed_step(self) -> Callable[[], None]:
        """The step on that batch."""
        return partial(self.step, *self.fixed_batch())


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = VARIANTS[sys.argv[1]]
    run = Trial(replace(chosen, small_share=0.0), HEAVY).fixed_step()  # the phase that decides the peak
    mark_start()
    for _ in range(3):
        run()
