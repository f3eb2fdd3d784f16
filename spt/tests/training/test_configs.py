"""Every config: the specification's numbers, a shrunk model on a made folder, one optimiser step, groups and
schedule."""

from pathlib import Path

import pytest
import torch
import yaml
from made import make_domains, make_few_shot, make_fgvc, make_vtab
from torch.nn import functional as F

from paperkit.command.cli import make_parser
from spt.models.backbones import BACKBONES
from spt.training import train_real
from spt.training.image_lists import VTAB
from spt.training.lists import build
from spt.training.tuning_module import TuningModule

CONFIGS = sorted(p for p in (Path(__file__).parents[2] / "configs").rglob("*.yaml") if p.parent.name != "segmentation")
SHRUNK = {
    "vit_base_patch16_224": {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8},
    "swin_base_patch4_window7_224": {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4},
    "convnext_base": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)},
}


def options_of(path: Path, *more: str):
    """The config through the command's own parser."""
    parser = make_parser("spt train")
    train_real.add_arguments(parser)
    return train_real.to_options(vars(parser.parse_args(["--config", str(path), *more])))


def test_there_is_a_config_for_every_row() -> None:
    names = {str(p.relative_to(CONFIGS[0].parent.parent)) for p in CONFIGS}
    for backbone in ("supervised", "mae", "moco", "swin", "convnext"):
        for method in ("spt_lora", "spt_adapter", "linear", "full", "lora8", "adapter8"):
            assert f"vtab/{backbone}_{method}.yaml" in names
    assert sum(name.startswith("fgvc/") for name in names) == 30
    assert sum(name.startswith("few_shot/") for name in names) == 6
    assert "domain_generalization/imagenet_16shot.yaml" in names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_config(path: Path, tmp_path: Path) -> None:
    first = path.read_text().splitlines()
    assert first[0].startswith("# ") and any(line.startswith("# Command:") for line in first[:3])
    raw, options = yaml.safe_load(path.read_text()), options_of(path)
    recipe = options.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.eval_batch_size, recipe.seed) == (100, 64, 128, 0)
    assert (recipe.lr, recipe.min_lr, recipe.warmup_lr, recipe.warmup_epochs) == (1e-3, 1e-5, 1e-6, 10)
    assert recipe.weight_decay == 1e-4 and options.backbone.drop_path == 0.1 and options.data.size == 224
    assert [recipe.lr_in(e) for e in (0, 1)] == [1e-6, 1e-6] and recipe.lr_in(11) == pytest.approx(9.7577e-4, rel=1e-4)
    assert any(Path(options.backbone.file).name == known.file for known in BACKBONES.values())
    if options.method.name == "spt":
        m = options.method
        assert (m.rank, m.alpha, m.beta, m.search, m.init, m.drop, m.drop_path) == (
            8,
            10,
            5,
            "official",
            "official",
            0.1,
            0.1,
        )
        assert m.sensitivity_batches == 16 and m.structured_vector and not m.structured_only
    # Shrunk, on a made folder.
    data, root = options.data, tmp_path / "data"
    if data.kind == "vtab":
        make_vtab(root, data.name)
        assert data.transform == "direct"
    elif data.kind == "fgvc":
        make_fgvc(root, data.name)
    else:
        make_few_shot(root, data.name)
    if data.domains:
        make_domains(tmp_path / "domains")
        data.domains = str(tmp_path / "domains")
    assert raw["data"]["root"].startswith("data/")
    data.root, data.size, data.workers = str(root), 32, 0
    recipe.batch_size = 4
    options.backbone.file, options.backbone.sizes = None, dict(SHRUNK[options.backbone.arch])
    options.method.rank, options.method.search, options.method.budget = 2, "exact", 3000
    if options.backbone.arch == "convnext_base":
        data.size = 224  # its constructor takes no image size
    loaders, tuned, _ = build(options)
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


@pytest.mark.parametrize("task", VTAB)
def test_every_vtab_task_is_read(task: str, tmp_path: Path) -> None:
    make_vtab(tmp_path, task)
    path = next(p for p in CONFIGS if p.stem == "supervised_spt_lora")
    for final, trained, tested in (("true", 14, 6), ("false", 10, 4)):
        options = options_of(path, "--data.name", task, "--data.root", str(tmp_path), "--data.final", final)
        from spt.training.list_data import ListData

        data = ListData(options.data, 64, 128, 0)
        assert data.classes == VTAB[task][0] and len(data.train) == trained
        assert [len(test) for test in data.tests.values()] == [tested] and len(data.for_sensitivity) == 10


def test_parameter_counts_of_the_backbones() -> None:
    """Specification, table of architectures; ViT-B's candidates by kind."""
    import timm

    from spt.method.candidates import find_candidates

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
    """Specification, table of architectures (17.6, 15.4 and 15.4 G)."""
    import timm

    from paperkit.results.flops import count

    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=1000)
    assert count(model, (1, 3, 224, 224)).macs == pytest.approx(1e9 * giga, rel=0.01)
