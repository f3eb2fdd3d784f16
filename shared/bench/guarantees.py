"""What paperkit's guarantees cost: saves, reads, seeding and updates beside the plain ones."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor

from paperkit.data.resumable import SeededDataset, SeededSampler, seeded_loader
from paperkit.files.weights import read_checkpoint, read_weights, save_checkpoint, save_weights
from paperkit.results.measure import Ratio, compare, print_ratios, write_bench
from paperkit.training.optim import OptimConfig, build

MODEL = "vit_tiny_patch16_224"


def files(folder: Path, pairs: int) -> dict[str, list[Ratio]]:
    """Writing (synced to the disk, as paperkit does) and reading a ViT-Ti's weights, 23 MB."""
    state = timm.create_model(MODEL).state_dict()
    plain, sealed = folder / "plain.safetensors", folder / "sealed.safetensors"
    plain_zip, sealed_zip = folder / "plain.pt", folder / "sealed.pt"

    def synced(save: Callable[[], object], path: Path) -> None:
        save()
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def safetensors_save() -> None:
        safetensors.torch.save_file(state, plain)

    def torch_save() -> None:
        torch.save(state, plain_zip)

    found = {
        "save_weights / safetensors, no sync": compare(
            safetensors_save,
            {
                "safetensors, sync": lambda: synced(safetensors_save, plain),
                "save_weights": lambda: save_weights(sealed, state),
            },
            pairs,
        ),
        "read_weights / safetensors": compare(
            lambda: safetensors.torch.load_file(plain), {"read_weights": lambda: read_weights(sealed)}, pairs
        ),
    }
    found["save_checkpoint / torch.save, no sync"] = compare(
        torch_save,
        {
            "torch.save, sync": lambda: synced(torch_save, plain_zip),
            "save_checkpoint": lambda: save_checkpoint(sealed_zip, state),
        },
        pairs,
    )
    found["read_checkpoint / torch.load"] = compare(
        lambda: torch.load(plain_zip, weights_only=True),
        {"read_checkpoint": lambda: read_checkpoint(sealed_zip)},
        pairs,
    )
    return found


class Noisy(torch.utils.data.Dataset[Tensor]):
    """1024 images of 3 x 64 x 64 that are augmented by a draw of noise."""

    def __init__(self) -> None:
        self.images = torch.zeros(1024, 3, 64, 64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index] + torch.randn(3, 64, 64)


def loading(pairs: int) -> dict[str, list[Ratio]]:
    """One epoch through the loader that can be resumed, beside torch's own."""
    data = Noisy()
    seeded = seeded_loader(SeededDataset(data, seed=0), SeededSampler(len(data), seed=0, batch_size=32))
    plain = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    return {"seeded loader / plain": compare(lambda: list(plain), {"seeded": lambda: list(seeded)}, pairs)}


def updates(pairs: int) -> dict[str, list[Ratio]]:
    """AdamW's update of a ViT-Ti, without forward and backward."""
    model = timm.create_model(MODEL)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    each = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, foreach=False)
    plain, fused = (build(model, OptimConfig(fused=fused), steps_per_epoch=10, epochs=1)[0] for fused in (False, True))
    variants = {"one tensor at a time": each.step, "fused: true": fused.step}
    return {"AdamW update / fused: false": compare(plain.step, variants, pairs)}


def add_arguments(parser: Any) -> None:
    """Options of `python shared/bench guarantees`."""
    parser.add_argument("--pairs", type=int, default=9, help="timed pairs per comparison")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--output", type=str, default="runs/shared/bench", help="folder of bench.json")


def run(arguments: Any) -> None:
    """Measure, print and write."""
    torch.set_num_threads(arguments.threads)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as folder:  # on the disk where runs are written
        found = files(Path(folder), arguments.pairs) | loading(arguments.pairs) | updates(arguments.pairs)
    for title, ratios in found.items():
        print_ratios(ratios, title)
    write_bench(output / "bench.json", "paperkit", ratios=found)
    print(f"{output / 'bench.json'}: {arguments.pairs} pairs each, torch threads: {arguments.threads}")
