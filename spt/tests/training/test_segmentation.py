"""ADE20K with SETR-PUP: the table's parameter counts, groups and schedule, crops, windows, runs through the command."""

import json
from pathlib import Path
from signal import SIGKILL, SIGTERM

import numpy as np
import pytest
import torch
from made import SCENE_SIZES, make_ade20k, same_bits, small_scenes, spt, tiny_setr
from PIL import Image
from torch import nn

from paperkit.command.cli import make_parser
from paperkit.errors import UserError
from paperkit.testing.commands import at_call
from paperkit.testing.runs import check_same_runs
from spt.deployment.hot_swap import HotSwap
from spt.method.sensitivity import measure_sensitivities
from spt.method.tuning import count_trained
from spt.models.backbones import load_backbone
from spt.models.delta import load_delta, selection_of
from spt.models.setr import IGNORED, create_setr, segmentation_loss, sliding_scores
from spt.models.spt_model import SPTModel
from spt.training import segmentation
from spt.training.ade20k import Scenes, scene_pairs
from spt.training.methods import prepare_method
from spt.training.recipe import MethodOptions
from spt.training.segmentation_module import SegmentationModule
from spt.training.segmentation_recipe import SceneOptions, SegmentationRecipe

CONFIGS = Path(__file__).parents[2] / "configs" / "segmentation"
METHODS = sorted((CONFIGS / "methods").glob("*.yaml"))


def options_of(*files: Path):
    """Config files through the engine's own parser, later over earlier."""
    parser = make_parser("spt train")
    parser.add_argument("--config", action="config")
    parser.add_argument("--engine", type=str)
    segmentation.add_arguments(parser)
    given = parser.parse_args([str(word) for file in files for word in ("--config", file)])
    assert given.engine == "segmentation"
    return segmentation.read_options(parser.instantiate_classes(given))


def test_parameters_are_those_of_the_papers_table() -> None:
    """Heads alone 13.1 M, everything 317.3 M, prompts 13.6 M."""
    counts = {}
    for name, method in (
        ("linear", MethodOptions("linear")), ("full", MethodOptions("full")), ("vpt", MethodOptions("vpt", rank=20)),
    ):  # fmt: skip
        with torch.device("meta"):
            tuned = prepare_method(create_setr("vit_large_patch16_224", 150, 512), method)
        spent = count_trained(tuned.model)
        counts[name] = round((spent.trained + spent.head) / 1e6, 1)
    assert counts == {"linear": 13.1, "full": 317.3, "vpt": 13.6}


def test_there_is_a_config_for_every_row() -> None:
    assert {path.stem for path in METHODS} == {"spt_lora", "spt_adapter", "full", "linear", "bias", "vpt"}


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_config(path: Path, tmp_path: Path) -> None:
    """The recipe's numbers; one step of a shrunk model on a made folder moves what is trained and nothing else."""
    assert path.read_text().splitlines()[1].startswith("# Command:")
    options = options_of(CONFIGS / "ade20k.yaml", path)
    assert options == options_of(path, CONFIGS / "ade20k.yaml")
    expected = {
        "spt_lora": MethodOptions(structured_type="lora", budget=1_500_000, search="exact"),
        "spt_adapter": MethodOptions(structured_type="adapter", budget=1_500_000, search="exact"),
        "vpt": MethodOptions("vpt", rank=20),
    }
    assert options.method == expected.get(path.stem, MethodOptions(path.stem))
    recipe, data = options.recipe, options.data
    assert (recipe.steps, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (160_000, 16, 0.9, 0.0)
    assert (data.classes, data.size, data.short_side, data.long_side, data.stride) == (150, 512, 512, 2048, 341)
    assert options.backbone.arch == "vit_large_patch16_224" and data.kind == "ade20k"
    assert recipe.lr_at(0) == 1e-3 and recipe.lr_at(0, 10) == 1e-2 and recipe.lr_at(160_000, 10) == 1e-4
    assert recipe.lr_at(80_000) == pytest.approx(1e-4 + 9e-4 * 0.5**0.9)
    make_ade20k(tmp_path)
    data.root, data.size, data.short_side, data.classes, data.workers = str(tmp_path), 32, 32, 5, 0
    options.backbone.file, options.backbone.sizes, recipe.batch_size = None, SCENE_SIZES, 4
    options.backbone.arch, recipe.sensitivity_batch = "vit_base_patch16_224", 3
    options.method.rank, options.method.budget = 2, 4000
    loaders, tuned, _ = segmentation.build(options)
    module = SegmentationModule(tuned.model, recipe, data)
    optimizer = module.configure_optimizers()
    groups = {group["factor"]: group for group in optimizer.param_groups}
    heads = {id(p) for n, p in tuned.model.named_parameters() if "head" in n}
    assert {id(p) for p in groups[10.0]["params"]} == heads
    assert len(optimizer.param_groups) == 2 and not any(id(p) in heads for p in groups[1.0]["params"])
    assert all((g["momentum"], g["weight_decay"]) == (0.9, 0.0) for g in optimizer.param_groups)
    before = {n: p.detach().clone() for n, p in tuned.model.named_parameters()}
    images, labels = next(iter(loaders.train_dataloader()))
    assert images.shape == (4, 3, 32, 32) and labels.shape == (4, 32, 32)
    segmentation_loss(module.model(images), labels).backward()
    optimizer.step()
    moved = {n for n, p in tuned.model.named_parameters() if not torch.equal(before[n], p)}
    trained = {n for n, p in tuned.model.named_parameters() if p.requires_grad}
    assert moved <= trained and {"decode_head.scores.weight", "auxiliary_heads.0.scores.bias"} <= moved
    if options.method.name == "spt":
        assert tuned.selection.modules and tuned.selection.counted <= 4000 and any("structured" in n for n in moved)


def test_loss_weighs_the_auxiliary_heads() -> None:
    """Main head 1, each auxiliary 0.4; pixels labelled 255 count nowhere."""
    scores, labels = [torch.randn(2, 5, 4, 4) for _ in range(3)], torch.randint(0, 5, (2, 4, 4))
    labels[:, 0] = IGNORED
    single = [nn.functional.cross_entropy(s[:, :, 1:], labels[:, 1:]) for s in scores]
    torch.testing.assert_close(segmentation_loss(scores, labels), single[0] + 0.4 * (single[1] + single[2]))


def test_sensitivity_pass_leaves_running_statistics_alone() -> None:
    model = tiny_setr()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = (torch.randn(2, 3, 32, 32), torch.randint(0, 5, (2, 32, 32)))
    values = measure_sensitivities(model, [batch], loss=segmentation_loss).values
    assert same_bits(model, before) and "blocks.1.attn.v.weight" in values


def test_windows_cover_the_image_and_average() -> None:
    """A model that answers with the pixels themselves gives their softmax back wherever windows overlap or not."""

    class Pixels(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-2:] == (8, 8)
            return x

    for size in ((8, 8), (13, 21), (5, 9)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(sliding_scores(Pixels(), x, 3, 8, 5), x.softmax(1))


def test_crops_are_seeded_padded_and_label_as_stated(tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    options = SceneOptions(root=str(tmp_path), classes=5, size=48, short_side=32)
    scenes = Scenes(scene_pairs(tmp_path, "training"), options, "random")
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(scenes[1])
    assert torch.equal(draws[0][0], draws[1][0]) and not torch.equal(draws[0][0], draws[2][0])
    assert {d[0].shape for d in draws} == {(3, 48, 48)} and {d[1].shape for d in draws} == {(48, 48)}
    image, labels = Scenes(scene_pairs(tmp_path, "training"), options, "whole")[1]
    assert labels.shape == (44, 52) and labels[0].unique().tolist() == [IGNORED]  # 0 in the file
    assert labels[1:].unique().tolist() == [1, 3] and min(image.shape[-2:]) == 32


def test_run_learns_and_is_evaluated_again(scenes: Path) -> None:
    run = scenes / "runs" / "spt" / "one"
    before = json.loads((run / "metrics.json").read_text())
    assert before["rows"][0]["metric"] == "mIoU, validation, single scale"
    assert before["rows"][0]["values"][0] > 14  # one class everywhere would reach 7
    assert "mIoU" in spt.child("eval", "--ckpt", run, cwd=scenes).out
    assert json.loads((run / "metrics.json").read_text())["rows"][0] == before["rows"][0]
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not any(name.endswith("mlp.fc1.weight") for name in kept)
    assert "model.decode_head.stages.0.1.running_mean" in kept


def test_delta_holds_the_heads_with_their_statistics(scenes: Path) -> None:
    delta = load_delta(scenes / "runs" / "spt" / "one" / "delta")
    trunk, plain = tiny_setr(7), tiny_setr(8)
    for model in (trunk, plain):
        load_backbone(model, scenes / "trunk.safetensors")
    images = torch.randn(1, 3, 32, 32)
    tuned = SPTModel.from_pretrained(trunk, scenes / "runs" / "spt" / "one" / "delta").eval()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    swap = HotSwap(plain)
    swap.add("scenes", delta)
    with torch.no_grad():
        torch.testing.assert_close(swap.switch("scenes")(images), tuned(images), rtol=1e-5, atol=1e-5)
        assert int(tuned(images).argmax(1).unique().numel()) >= 1
    assert float(delta.tensors["decode_head.stages.0.1.running_mean"].abs().sum()) > 0
    swap.switch(None)
    assert same_bits(plain, before)
    del delta.tensors["decode_head.stages.0.1.running_var"]
    with pytest.raises(UserError, match=r"lacks decode_head\.stages\.0\.1\.running_var"):
        selection_of(delta, tiny_setr())


@pytest.mark.parametrize(("sent", "step"), [(SIGKILL, 5), (SIGTERM, 60)], ids=["killed", "told in the last step"])
def test_ended_and_resumed_gives_the_same_run(sent: int, step: int, scenes: Path) -> None:
    run = scenes / "runs" / "spt" / f"cut-{step}"
    patch = at_call("spt.training.segmentation_module:SegmentationModule.training_step", step, sent)
    code = 128 + sent if sent == SIGTERM else -sent
    spt.child("train", "--name", run.name, *small_scenes(scenes), cwd=scenes, patch=patch, code=code)
    assert not (run / "finished").exists()
    spt.child("train", "--resume", run, cwd=scenes)
    check_same_runs(scenes / "runs" / "spt" / "one", run)


def test_damaged_folders_are_one_line(scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "ade20k"
    image, label = (root / kind / "training" / "ADE_00000000" for kind in ("images", "annotations"))
    image, label = image.with_suffix(".jpg"), label.with_suffix(".png")
    damages = (
        (lambda: label.unlink(), "1 of 6 annotations of training"),
        (lambda: image.write_bytes(b"half"), "cannot read image"),
        (lambda: label.write_bytes(b"half"), "cannot read image"),
        (lambda: Image.new("RGB", (52, 40), (2, 60, 3)).save(label), "is in colour"),
        (lambda: Image.new("RGBA", (52, 40), (2, 60, 3, 255)).save(label), "is in colour"),
        (
            lambda: (
                Image.new("F", (52, 40), 1).save(label.with_suffix(".tiff")) or label.with_suffix(".tiff").rename(label)
            ),
            "fractions",
        ),
        (
            lambda: Image.new("L", (52, 40), 9).save(label),
            "class counts differ",
        ),
        (
            lambda: Image.new("L", (9, 9), 1).save(label),
            "another size",
        ),
        (lambda: (root / "images").rename(tmp_path / "elsewhere"), "images/training is missing"),
    )
    for number, (damage, words) in enumerate(damages):
        make_ade20k(root)
        damage()
        options = small_scenes(scenes, **{"data.root": str(root)})
        assert words in spt.refused("train", "--name", str(number), *options, cwd=tmp_path)


def test_annotations_as_tools_write_them(tmp_path: Path) -> None:
    """Grey, a palette, grey as RGB and 16 bits are the same numbers; 0 and 255 stand for nothing."""
    make_ade20k(tmp_path)
    options = SceneOptions(root=str(tmp_path), classes=5, size=48, short_side=32)
    path = scene_pairs(tmp_path, "training")[1][1]
    grey = Image.open(path).copy()
    expected = Scenes(scene_pairs(tmp_path, "training"), options, "whole")[1][1]
    palette = grey.copy()
    palette.putpalette([7 * (i % 30) for i in range(768)])
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16))
    nothing = grey.point(lambda label: label or 255)
    for other in (palette, grey.convert("RGB"), wide, nothing):
        other.save(path)
        assert torch.equal(Scenes(scene_pairs(tmp_path, "training"), options, "whole")[1][1], expected)


def test_images_of_every_spelling_are_found(tmp_path: Path) -> None:
    """`.jpeg` and `.JPG` among `.jpg`; what macOS leaves beside them is none."""
    make_ade20k(tmp_path)
    images = tmp_path / "images" / "training"
    (images / "ADE_00000001.jpg").rename(images / "ADE_00000001.jpeg")
    (images / "ADE_00000002.jpg").rename(images / "ADE_00000002.JPG")
    (images / "._ADE_00000003.jpg").write_bytes(b"macOS")
    (images / "Thumbs.db").write_bytes(b"Windows")
    pairs = scene_pairs(tmp_path, "training")
    assert len(pairs) == 6 and {image.stem for image, _ in pairs} == {label.stem for _, label in pairs}
    (images / "ADE_00000000.jpeg").write_bytes((images / "ADE_00000000.jpg").read_bytes())
    with pytest.raises(UserError, match="ADE_00000000 twice"):
        scene_pairs(tmp_path, "training")


def test_recipe_has_a_floor() -> None:
    recipe = SegmentationRecipe(steps=100)
    rates = [recipe.lr_at(step, 10) for step in range(101)]
    assert rates == sorted(rates, reverse=True) and rates[-1] == recipe.min_lr
