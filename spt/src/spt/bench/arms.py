"""What `spt bench` races: ViT-B/16 tuned by SPT, by peft's LoRA at the same count, and in full.

Run as a process of its own for peak memory: `python -m spt.bench.arms ARM`.
"""

import json
import sys
import warnings
from collections.abc import Callable
from importlib.resources import files

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spt.method.allocation import Rule, Selection
from spt.method.candidates import OPERATIONS, find_candidates
from spt.method.tuning import Placement, apply_selection, optimizer_groups
from spt.models.selection_file import operation_name

SPT, LORA_QKV, LORA_ALL, FULL = "SPT-LoRA, 0.4 M", "peft LoRA on qkv", "peft LoRA on all Linears", "full fine-tuning"
ARMS = (LORA_QKV, SPT, LORA_ALL, FULL)
CLASSES, BATCH = 100, 8


def vit_b() -> nn.Module:
    """ViT-B/16 with random weights: time and memory do not depend on them."""
    torch.manual_seed(0)
    return timm.create_model("vit_base_patch16_224", num_classes=CLASSES)


def released_shape(model: nn.Module, task: str = "cifar", budget: str = "0.4") -> Selection:
    """A selection with the modules and counts of the authors' released one; positions of single entries are drawn.

    The released table gives the number of whole vectors and their total length; biases and norms are taken in order.
    """
    entry = json.loads(files("spt").joinpath("published/released_selections.json").read_text())["lora"][task][budget]
    shapes = find_candidates(model).shapes()
    rule = Rule("lora")
    modules = [
        operation_name(block, operation)
        for block, row in enumerate(entry["matrices"])
        for operation, flag in zip(OPERATIONS, row, strict=True)
        if flag == "1"
    ]
    vectors = [name for name, shape in shapes.items() if shape.numel() == 768 and len(shape) == 1][
        : entry["n_tuned_vectors"]
    ]
    free = [name for name, shape in shapes.items() if len(shape) == 2 and name not in modules]
    draw = torch.Generator().manual_seed(0)
    each = entry["unstructured"] // len(free)
    entries = {name: torch.randperm(shapes[name].numel(), generator=draw)[:each].sort().values for name in free}
    return Selection(modules, vectors, entries, shapes, rule)


def build(arm: str) -> nn.Module:
    """The model of an arm."""
    model = vit_b()
    if arm == FULL:
        return model
    selection = released_shape(model)
    if arm == SPT:
        return apply_selection(model, selection, Placement())
    from peft import LoraConfig, get_peft_model

    per_rank = 36_864 if arm == LORA_QKV else 147_456  # sum of (in + out) over the targets of 12 blocks
    rank = round(selection.counted / per_rank)
    targets = ["qkv"] if arm == LORA_QKV else ["qkv", "attn.proj", "fc1", "fc2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.1, target_modules=targets, modules_to_save=["head"])
        return get_peft_model(model, config)


def make_step(model: nn.Module, batch: int = BATCH, bf16: bool = False) -> Callable[[], Tensor]:
    """One optimiser step on fixed random images."""
    model.train()
    draw = torch.Generator().manual_seed(0)
    images, labels = (
        torch.randn(batch, 3, 224, 224, generator=draw),
        torch.randint(0, CLASSES, (batch,), generator=draw),
    )
    groups = [{k: v for k, v in g.items() if k != "names"} for g in optimizer_groups(model)]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=1e-4)

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


PASSES = ("squared and freed", "kept, then squared", "dropped")


def sensitivity_pass(kind: str, batches: int = 2, batch: int = 2) -> None:
    """The measuring pass with hooks, without (all gradients first, then their squares), or with nothing kept."""
    from paperkit.results.measure import mark_start
    from spt.method.sensitivity import squared_gradients

    model = vit_b()
    mark_start()
    own = {name: p for name, p in model.named_parameters() if "head" not in name}
    draw = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(batch, 3, 224, 224, generator=draw), torch.randint(0, CLASSES, (batch,), generator=draw))
        for _ in range(batches)
    ]
    if kind == "squared and freed":
        with squared_gradients(own):
            for images, labels in data:
                F.cross_entropy(model(images), labels).backward()
        return
    if kind == "dropped":
        for parameter in own.values():
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    sums = {name: torch.zeros_like(p) for name, p in own.items()} if kind != "dropped" else {}
    for images, labels in data:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        for name, accumulator in sums.items():
            gradient = own[name].grad
            assert gradient is not None
            accumulator.addcmul_(gradient, gradient)


def main() -> None:
    """Peak memory of one arm: three steps, or one measuring pass."""
    from paperkit.results.measure import mark_start

    torch.set_float32_matmul_precision("medium")
    arm = sys.argv[1]
    if arm.startswith("sensitivity "):
        sensitivity_pass(arm.removeprefix("sensitivity "))
        return
    model = build(arm)
    mark_start()
    step = make_step(model)
    for _ in range(3):
        step()


if __name__ == "__main__":
    main()
