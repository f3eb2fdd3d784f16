"""Every pair of a data set's and a method's file: the published numbers, a shrunk model, one optimiser step."""

from pathlib import Path

import pytest
import timm
import torch
from made import make_domains, make_few_shot, make_fgvc, make_vtab
from torch import nn
from torch.nn import functional as F

from paperkit.command.cli import make_parser
from paperkit.results.flops import count
from paperkit.training import optim
from spt.method.candidates import find_candidates
from spt.models.backbones import BACKBONES
from spt.training import lists
from spt.training.image_lists import FEW_SHOT, FGVC, VTAB
from spt.training.list_data import ListData
from spt.training.recipe import MethodOptions
from spt.training.tuning_module import TuningModule

CONFIGS = Path(__file__).parents[2] / "configs"
SHRUNK = {
    "vit_base_patch16_224": {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8},
    "swin_base_patch4_window7_224": {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4},
    "convnext_base": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)},
}
METHODS = {
    "spt_lora": MethodOptions("spt", 400_000, "lora"),
    "spt_adapter": MethodOptions("spt", 400_000, "adapter"),
    "linear": MethodOptions("linear"),
    "full": MethodOptions("full"),
    "bias": MethodOptions("bias"),
    "lora8": MethodOptions("lora", rank=8),
    "lora16": MethodOptions("lora", rank=16),
    "adapter8": MethodOptions("adapter", rank=8),
    "adapter32": MethodOptions("adapter", rank=32),
    "adaptformer": MethodOptions("adaptformer", rank=16),
    "vpt": MethodOptions("vpt", rank=50),
}
# The rows of the paper's tables: which methods stand beside which data set.
COMMON = ("spt_lora", "spt_adapter", "linear", "full", "lora8", "adapter8")
VIT = (*COMMON, "bias", "lora16", "adapter32", "vpt")
ROWS = {
    **{"vtab/supervised": (*VIT, "adaptformer"), "vtab/mae": VIT, "vtab/moco": VIT},
    **{"vtab/swin": COMMON, "vtab/convnext": COMMON},
    **{f"fgvc/{name}": ("spt_lora", "spt_adapter", "full", "lora8", "adapter8", "vpt") for name in FGVC},
    **{f"few_shot/{name}": ("spt_lora",) for name in FEW_SHOT},
}
PAIRS = [(data, method) for data, methods in ROWS.items() for method in methods]
DOMAINS = "domain_generalization/imagenet_16shot"


def options_of(*words: str | Path):
    """Words of a command line through the engine's own parser."""
    parser = make_parser("spt train")
    parser.add_argument("--config", action="config")
    parser.add_argument("--engine", type=str)
    lists.add_arguments(parser)
    given = parser.parse_args(list(map(str, words)))
    assert given.engine == "lists"
    return lists.read_options(parser.instantiate_classes(given))


def files(*names: str) -> list[str]:
    return [word for name in names for word in ("--config", str(CONFIGS / f"{name}.yaml"))]


def test_every_file_is_of_a_pair_and_opens_with_its_command() -> None:
    named = {f"{data}.yaml" for data in ROWS} | {f"methods/{method}.yaml" for method in METHODS}
    found = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    assert {name for name in found if not name.startswith("segmentation/")} == {*named, f"{DOMAINS}.yaml"}
    for name in found:
        lines = (CONFIGS / name).read_text().splitlines()
        assert lines[0].startswith("# ") and lines[1].startswith("# Command:"), name
        engine = "segmentation" if name.startswith("segmentation/") else "lists"
        assert lines.count(f"engine: {engine}") == 1, name


@pytest.mark.parametrize(("data_file", "method"), [*PAIRS, (DOMAINS, "spt_lora")], ids=lambda name: name)
def test_pair(data_file: str, method: str, tmp_path: Path) -> None:
    first = (["few_shot/imagenet"] if data_file == DOMAINS else []) + [data_file]
    options = options_of(*files(*first, f"methods/{method}"))
    assert options == options_of(*files(f"methods/{method}", *first))  # neither says what the other does
    recipe, collection = options.recipe, data_file.split("/")[0]
    assert (recipe.epochs, recipe.batch_size, recipe.eval_batch_size, recipe.seed) == (100, 64, 128, 0)
    assert (recipe.lr, recipe.min_lr, recipe.warmup_lr, recipe.warmup_epochs) == (1e-3, 1e-5, 1e-6, 10)
    assert recipe.weight_decay == 1e-4 and options.backbone.drop_path == 0.1 and options.data.size == 224
    assert any(Path(options.backbone.file).name == known.file for known in BACKBONES.values())
    assert options.method == METHODS[method]
    m = options.method
    assert (m.alpha, m.beta, m.search, m.init, m.drop, m.drop_path) == (10, 5, "official", "official", 0.1, 0.1)
    assert m.sensitivity_batches == 16 and m.structured_vector and not m.structured_only
    data = options.data
    kind = {"domain_generalization": "few_shot"}.get(collection, collection)
    assert (data.kind, data.final) == (kind, True) and data.root.startswith("data/")
    assert data.transform == ("direct" if kind == "vtab" else "crop")
    assert data.domains == ("data/domain-generalization" if data_file == DOMAINS else None)
    if kind == "few_shot":
        assert (data.shots, data.list_seed) == (16, 0)
    # Shrunk, on a made folder.
    root = tmp_path / "data"
    if data.kind == "vtab":
        make_vtab(root, data.name)
    elif data.kind == "fgvc":
        make_fgvc(root, data.name)
    else:
        make_few_shot(root, data.name)
    if data.domains:
        make_domains(tmp_path / "domains")
        data.domains = str(tmp_path / "domains")
    data.root, data.size, data.workers = str(root), 32, 0
    recipe.batch_size = 4
    options.backbone.file, options.backbone.sizes = None, dict(SHRUNK[options.backbone.arch])
    options.method.rank, options.method.search, options.method.budget = 2, "exact", 3000
    if options.backbone.arch == "convnext_base":
        data.size = 224  # its constructor takes no image size
    loaders, tuned, _ = lists.build(options)
    module = TuningModule(tuned.model, recipe, loaders.classes, list(loaders.tests))
    optimizer = module.configure_optimizers()
    decay, plain = optimizer.param_groups
    assert (decay["weight_decay"], plain["weight_decay"]) == (1e-4, 0.0)
    assert all(p.ndim > 1 for p in decay["params"]) and optimizer.defaults["betas"] == (0.9, 0.999)
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == trained
    before = {n: p.detach().clone() for n, p in tuned.model.named_parameters()}
    images, labels = next(iter(loaders.train_dataloader()))
    F.cross_entropy(module(images), labels).backward()
    optimizer.step()
    moved = {n for n, p in tuned.model.named_parameters() if not torch.equal(before[n], p)}
    assert moved and moved <= {n for n, p in tuned.model.named_parameters() if p.requires_grad}
    assert {"full": "full fine-tuning"}.get(options.method.name) or any("head" in n for n in moved)
    if tuned.selection is not None and options.method.name == "spt":
        assert tuned.selection.counted <= 3000


def test_schedule_is_the_released_one() -> None:
    """The first two epochs at the warm-up's start; later ones are one epoch late."""
    recipe = options_of(*files("vtab/supervised")).recipe
    optimizer, schedule = optim.build([{"params": [nn.Parameter(torch.zeros(1))]}], recipe.optim(), 1, recipe.epochs)
    rates = []
    for epoch in (0, 1, 2, 11):
        schedule.advance(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-6, 1e-6, 1e-6 + (1e-3 - 1e-6) / 10, 9.7577e-4], rel=1e-4)


@pytest.mark.parametrize("task", VTAB)
def test_every_vtab_task_is_read(task: str, tmp_path: Path) -> None:
    make_vtab(tmp_path, task)
    for final, trained, tested in (("true", 14, 6), ("false", 10, 4)):
        options = options_of(
            *files("vtab/supervised"), "--data.name", task, "--data.root", str(tmp_path), "--data.final", final
        )
        data = ListData(options.data, 64, 128, 0)
        assert data.classes == VTAB[task][0] and len(data.train) == trained
        assert [len(test) for test in data.tests.values()] == [tested] and len(data.for_sensitivity) == 10


def test_parameter_counts_of_the_backbones() -> None:
    """The table of architectures; ViT-B's candidates by kind."""
    for name, row in BACKBONES.items():
        with torch.device("meta"):
            model = timm.create_model(row.arch, num_classes=1)
        body = sum(p.numel() for n, p in model.named_parameters() if "head" not in n)
        assert body == pytest.approx(row.params, rel=2e-3), name
        if row.arch == "vit_base_patch16_224":
            found = find_candidates(model)
            sizes = {kind: [item.shape.numel() for item in found if item.kind == kind] for kind in ("matrix", "vector")}
            assert body == 85_798_656 and sum(map(sum, sizes.values())) == 85_056_000
            assert (len(sizes["matrix"]), len(sizes["vector"]), sum(sizes["vector"])) == (72, 122, 121_344)


@pytest.mark.parametrize(
    ("arch", "giga"),
    [("vit_base_patch16_224", 17.58), ("swin_base_patch4_window7_224", 15.4), ("convnext_base", 15.4)],
)
def test_multiply_adds_of_the_backbones(arch: str, giga: float) -> None:
    """The table of architectures (17.6, 15.4 and 15.4 G)."""
    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=1000)
    assert count(model, (1, 3, 224, 224)).macs == pytest.approx(1e9 * giga, rel=0.01)
