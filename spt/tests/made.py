"""Models of a few thousand weights, data folders of the right layout with a few small pictures, and runs of seconds."""

import json
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from paperkit.files.weights import save_weights
from paperkit.testing.commands import Command
from spt.experiment.settings import SENSITIVE
from spt.method.sensitivity import measure_sensitivities, reset_head
from spt.models.backbones import create_backbone
from spt.models.setr import SETR, create_setr
from spt.models.spt_model import SPTConfig, SPTModel, get_spt_model
from spt.training.image_lists import DOMAINS, FEW_SHOT, FGVC, VTAB

CLASSES = 6
spt = Command(
    "spt",
    "spt.cli:main",
    preload=(
        "paperkit.command.seeds",
        "spt.experiment.engine",
        "spt.experiment.run",
        "spt.training.segmentation",
        "spt.training.sweep",
    ),
)


def tiny_vit(seed: int = 0, classes: int = CLASSES, depth: int = 3, **options: object) -> VisionTransformer:
    """A ViT of 16 tokens and width 32 with a random head."""
    torch.manual_seed(seed)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": depth, "num_heads": 4, **options}
    model = VisionTransformer(num_classes=classes, **sizes)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1)
    reset_head(model)
    return model


def tiny_swin(seed: int = 0) -> SwinTransformer:
    """A Swin of two stages, window 2, with shifted windows and one patch merging."""
    torch.manual_seed(seed)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=2,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=CLASSES,
    )
    reset_head(model)
    return model


def batches(count: int = 3, size: int = 6, side: int = 16, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, side, side, generator=generator), torch.randint(0, CLASSES, (size,), generator=generator))
        for _ in range(count)
    ]


def tiny_values(seed: int = 0) -> dict[str, Tensor]:
    """Sensitivities of the tiny ViT."""
    return measure_sensitivities(tiny_vit(seed), batches(seed=seed), eval_mode=True).values


def same_bits(model: nn.Module, state: dict[str, Tensor]) -> bool:
    """True when every tensor of `model` equals `state` bit for bit (NaN included)."""
    own = model.state_dict()
    return own.keys() == state.keys() and all(
        own[name].shape == value.shape
        and torch.equal(own[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))
        for name, value in state.items()
    )


def _picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 20), ((37 * number) % 256, (91 * number) % 256, (53 * number) % 256)).save(path)


def make_vtab(root: Path, task: str, train: int = 10) -> None:
    """Lists and images of one task."""
    folder, classes = root / task, VTAB[task][0]
    for split, count in (("train800", train), ("val200", 4), ("test", 6)):
        lines = []
        for number in range(count):
            _picture(folder / "images" / split / f"{number:06d}.jpg", number)
            lines.append(f"images/{split}/{number:06d}.jpg {number % classes}")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    both = (folder / "train800.txt").read_text() + (folder / "val200.txt").read_text()
    (folder / "train800val200.txt").write_text(both)


def make_fgvc(root: Path, key: str) -> None:
    """JSON lists with every class once; ids are not consecutive."""
    classes, below = FGVC[key]
    for split in ("train", "val", "test"):
        entries = {}
        for number in range(classes):
            name = f"{split} {number}.jpg"
            _picture(root / below / name, number)
            entries[name] = 3 * number + 1
        (root / f"{split}.json").write_text(json.dumps(entries))


def make_few_shot(root: Path, name: str) -> None:
    """Lists of 16 shots and seed 0, and of the evaluation images; names with spaces."""
    classes, train_folder, other_folder = FEW_SHOT[name]
    lists = {
        "train_meta.list.num_shot_16.seed_0": train_folder,
        "val_meta.list": other_folder,
        "test_meta.list": other_folder,
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for file, below in lists.items():
        lines = []
        for number in range(6):
            path = f"a b/{file[:4]} {number}.jpg"
            _picture(root / below / path, number)
            lines.append(f"{path} {number % classes}")
        (root / "annotations" / file).write_text("\n".join(lines) + "\n")


def make_domains(root: Path) -> None:
    """The four shifted ImageNets."""
    for name in DOMAINS:
        (root / name / "annotations").mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(3):
            _picture(root / name / "images" / f"{number}.jpg", number)
            lines.append(f"{number}.jpg {number + 5}")
        (root / name / "annotations" / "val_meta.list").write_text("\n".join(lines) + "\n")


def make_ade20k(root: Path, classes: int = 5, training: int = 6, validation: int = 3) -> None:
    """Scenes of two halves: the class follows from the colour; the border row is unlabelled (0)."""
    for split, count in (("training", training), ("validation", validation)):
        for number in range(count):
            height, width = 40 + 4 * number, 52
            picture, labels = Image.new("RGB", (width, height)), Image.new("L", (width, height))
            for side in (0, 1):
                label = 1 + (number + 2 * side) % classes
                box = (side * width // 2, 1, (side + 1) * width // 2, height)
                picture.paste((40 * label, 250 - 40 * label, 90), box)
                labels.paste(label, box)
            for kind, made, suffix in (("images", picture, "jpg"), ("annotations", labels, "png")):
                folder = root / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                made.save(folder / f"ADE_{number:08d}.{suffix}")


def words(options: dict[str, str]) -> list[str]:
    """Options as the words of a command line."""
    return [word for name, value in options.items() for word in (f"--{name}", value)]


SIZES = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}


def small_lists(root: Path, **more: str) -> list[str]:
    """Options of a run of seconds on the lists and the backbone that `lists_world` makes."""
    options = {
        "data.root": str(root / "vtab"),
        "data.name": "svhn",
        "data.size": "32",
        "data.workers": "0",
        "backbone.arch": "vit_tiny_patch16_224",
        "backbone.sizes": json.dumps(SIZES),
        "backbone.file": str(root / "backbone.safetensors"),
        "method.budget": "1500",
        "method.rank": "2",
        "method.search": "exact",
        "recipe.epochs": "3",
        "recipe.batch_size": "4",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        **more,
    }
    return ["--engine", "lists", *words(options)]


def lists_world(root: Path) -> Path:
    """Data, a backbone file, and one finished run (`runs/spt/one`) in `root`."""
    for task in ("svhn", "eurosat"):
        make_vtab(root / "vtab", task)
    torch.manual_seed(5)
    model = create_backbone("vit_tiny_patch16_224", 10, img_size=32, **SIZES)
    save_weights(root / "backbone.safetensors", {n: v for n, v in model.state_dict().items() if "head" not in n})
    spt.child("train", "--name", "one", *small_lists(root), cwd=root)
    return root


SCENE_SIZES = {"embed_dim": 32, "depth": 3, "num_heads": 2, "taps": [0, 1, 2], "width": 16}


def tiny_setr(seed: int = 0) -> SETR:
    """SETR of three blocks for 5 classes and 32 pixels."""
    torch.manual_seed(seed)
    return create_setr("vit_base_patch16_224", 5, 32, **SCENE_SIZES)


def small_scenes(root: Path, **more: str) -> list[str]:
    """Options of a run of seconds on the scenes and the trunk that `ade20k_world` makes."""
    options = {
        "data.root": str(root / "ade20k"),
        "data.classes": "5",
        "data.size": "32",
        "data.short_side": "32",
        "data.stride": "20",
        "data.workers": "0",
        "backbone.arch": "vit_base_patch16_224",
        "backbone.sizes": json.dumps(SCENE_SIZES),
        "backbone.file": str(root / "trunk.safetensors"),
        "backbone.drop_path": "0",
        "method.budget": "4000",
        "method.rank": "2",
        "method.search": "exact",
        "recipe.steps": "60",
        "recipe.lr": "0.02",
        "recipe.batch_size": "3",
        "recipe.sensitivity_batch": "3",
        "recipe.save_every": "3",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        **more,
    }
    return ["--engine", "segmentation", *words(options)]


def ade20k_world(root: Path) -> Path:
    """Scenes, a trunk file, and one finished run (`runs/spt/one`) in `root`."""
    make_ade20k(root / "ade20k")
    save_weights(root / "trunk.safetensors", {n: v for n, v in tiny_setr(3).state_dict().items() if "head" not in n})
    spt.child("train", "--name", "one", *small_scenes(root), cwd=root)
    return root


SHORT = ["--seeds", "2", "--tasks", "[flip,location]", "--steps", "20", "--pretrain_steps", "60"]
SHORT += ["--arms", f"[{SENSITIVE},SPT-LoRA,peft AdaLoRA]"]


def digits_run(root: Path) -> Path:
    """A short finished run of the embedded experiment (`runs/spt/one`) in `root`."""
    spt.child("train", "--name", "one", *SHORT, cwd=root)
    return root


def tuned(kind: str = "lora", steps: int = 3, swin: bool = False, seed: int = 0, **options: object) -> SPTModel:
    """A tiny model tuned for a few steps."""
    model = tiny_swin() if swin else tiny_vit()
    data = batches(side=32 if swin else 16, seed=seed)
    fixed = () if swin else ("cls_token",)
    values = measure_sensitivities(model, data, fixed=fixed, eval_mode=True)
    config = SPTConfig(budget=1500, structured_type=kind, r=2, fixed=fixed, drop=0, drop_path=0, **options)
    torch.manual_seed(seed)
    made = get_spt_model(model, config, values)
    optimizer = torch.optim.AdamW(made.optimizer_groups(), lr=1e-2)
    for images, labels in data[:steps]:
        optimizer.zero_grad()
        F.cross_entropy(made(images), labels).backward()
        optimizer.step()
    return made.eval()
