"""The tuned model: what trains, merging, deltas, and the checks on foreign files."""

import copy
import os
from pathlib import Path

import pytest
import torch
from made import CLASSES, batches, same_bits, tiny_swin, tiny_vit, tuned
from torch import nn
from torch.nn import functional as F

from paperkit.errors import UserError
from spt import SPTConfig, SPTModel, get_spt_model, measure_sensitivities
from spt.method.allocation import Rule, Selection
from spt.method.candidates import find_candidates
from spt.method.sensitivity import reset_head
from spt.method.split_qkv import SplitQKV
from spt.models.delta import load_delta, save_delta
from spt.models.selection_file import ALLOWED, read_selection, to_content

KINDS = ["lora", "adapter", "none"]


@pytest.mark.parametrize("kind", KINDS)
def test_zero_init_starts_at_the_pretrained_function(kind: str) -> None:
    images = batches()[0][0]
    with torch.no_grad():
        before = tiny_vit().eval()(images)
        torch.testing.assert_close(tuned(kind, steps=0)(images), before)


def test_official_init_does_not() -> None:
    images = batches()[0][0]
    assert not torch.allclose(tuned(steps=0, init="official")(images), tiny_vit().eval()(images), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_was_chosen_moves(kind: str) -> None:
    spt, plain = tuned(kind), tiny_vit()
    assert spt.selection.counted <= 1500
    spent = spt.spent()
    assert spent.head == 32 * CLASSES + CLASSES
    # LayerNorm entries are counted but not trained.
    lost = sum(i.numel() for n, i in spt.selection.entries.items() if "norm" in n)
    assert spent.trained == spt.selection.counted - lost
    stripped = spt.unload()
    assert same_bits(stripped, plain.state_dict())


@pytest.mark.parametrize("swin", [False, True], ids=["vit", "swin"])
@pytest.mark.parametrize("kind", ["lora", "none", "lora_bias"])
def test_merged_model_is_plain_and_equal(kind: str, swin: bool) -> None:
    spt = tuned(kind, swin=swin)
    images = batches(side=32 if swin else 16)[0][0]
    with torch.no_grad():
        expected = spt(images)
        merged = spt.merge_and_unload()
        torch.testing.assert_close(merged(images), expected, rtol=1e-5, atol=1e-5)
    plain = tiny_swin() if swin else tiny_vit()
    plain.load_state_dict(merged.state_dict())
    assert {type(m) for m in merged.modules()} == {type(m) for m in plain.modules()}


def test_adapters_refuse_to_merge() -> None:
    with pytest.raises(UserError, match="an adapter cannot be merged"):
        tuned("adapter").merge_and_unload()


def test_disable_adapter_gives_the_backbone_and_back() -> None:
    spt, images = tuned(), batches()[0][0]
    with torch.no_grad():
        with_it = spt(images)
        with spt.disable_adapter():
            torch.testing.assert_close(spt(images), tiny_vit().eval()(images))
        assert torch.equal(spt(images), with_it)


@pytest.mark.parametrize("swin", [False, True], ids=["vit", "swin"])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_delta_gives_the_same_outputs(kind: str, swin: bool, tmp_path: Path) -> None:
    spt = tuned(kind, swin=swin)
    spt.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    loaded = SPTModel.from_pretrained(tiny_swin() if swin else tiny_vit(), tmp_path).eval()
    images = batches(side=32 if swin else 16)[0][0]
    assert torch.equal(loaded(images), spt(images))
    again = loaded.unload()
    assert same_bits(again, (tiny_swin() if swin else tiny_vit()).state_dict())


def test_print_trainable_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    spt = tuned()
    spt.print_trainable_parameters()
    line = capsys.readouterr().out
    assert f"counted {spt.selection.counted:,}" in line and f"trained {spt.spent().trained:,}" in line


def test_delta_of_another_backbone_class_count_or_without_a_head(tmp_path: Path) -> None:
    spt = tuned()
    spt.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="backbone with architecture"):
        SPTModel.from_pretrained(tiny_vit(depth=4), tmp_path)
    other = tiny_vit()
    other.blocks[0].mlp.fc1.weight.data += 1
    with pytest.raises(UserError, match="backbone with weights"):
        SPTModel.from_pretrained(other, tmp_path)
    with pytest.raises(UserError, match="class counts differ: head"):
        SPTModel.from_pretrained(tiny_vit_with_classes(9), tmp_path)
    delta = load_delta(tmp_path)
    del delta.tensors["head.bias"]
    save_delta(tmp_path, delta)
    with pytest.raises(UserError, match=r"lacks head\.bias"):
        SPTModel.from_pretrained(tiny_vit(), tmp_path)


def tiny_vit_with_classes(classes: int) -> nn.Module:
    """The same backbone with another head."""
    model = tiny_vit()
    model.reset_classifier(classes)
    reset_head(model)
    return model


def test_delta_is_about_eight_bytes_an_entry(tmp_path: Path) -> None:
    spt = tuned("none")
    spt.save_pretrained(tmp_path)
    entries = spt.selection.sparse_count
    rest = sum(t.numel() * 4 for t in spt.delta().tensors.values())
    size = os.path.getsize(tmp_path / "adapter_model.safetensors")
    header = 200 * (2 * len(spt.selection.entries) + 3) + 500
    assert 8 * entries * 0.8 < size - rest < 8 * entries + header


def test_sensitivities_and_selections_of_another_model_are_refused(tmp_path: Path) -> None:
    values = measure_sensitivities(tiny_vit(), batches(), eval_mode=True)
    config = SPTConfig(budget=1500, r=2)
    with pytest.raises(UserError, match="another architecture"):
        get_spt_model(tiny_vit(depth=4), config, values)
    changed = tiny_vit()
    changed.blocks[0].mlp.fc1.weight.data += 1
    with pytest.raises(UserError, match="measured on other weights"):
        get_spt_model(changed, config, values)
    selection = get_spt_model(tiny_vit(), config, values).selection
    with pytest.raises(UserError, match="another architecture"):
        get_spt_model(tiny_swin(), config, selection)


def test_selection_file_round_trip_and_safety(tmp_path: Path) -> None:
    spt = tuned()
    torch.save(to_content(spt.selection), tmp_path / "param_req_0.001.pth")
    read = read_selection(tmp_path / "param_req_0.001.pth", spt.selection.rule, spt.selection.shapes)
    assert read.modules == spt.selection.modules and read.vectors == spt.selection.vectors
    assert all(torch.equal(read.entries[n], i) for n, i in spt.selection.entries.items())
    with pytest.raises(UserError, match="give the type and rank"):
        read_selection(
            tmp_path / "param_req_0.001.pth", spt.config.__class__(r=3).rule(tiny_vit()), spt.selection.shapes
        )
    golden = Path(__file__).parents[1] / "golden" / "param_req_0.4_format_sample.pth"
    shapes = spt.selection.shapes
    assert read_selection(golden, spt.selection.rule, shapes).counted == 134 + 832 + 32

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"params": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="system"):
        read_selection(tmp_path / "evil.pth", spt.selection.rule, shapes)
    assert not (tmp_path / "ran").exists() and len(ALLOWED) == 4


@pytest.mark.parametrize("training", [True, False])
def test_q_k_v_run_as_one_product_with_the_same_result(training: bool) -> None:
    """Modules, entries and tuned biases on each of q, k and v; a deep copy has the weights apart and runs three."""
    model = tiny_vit()
    shapes = find_candidates(model).shapes()
    places = torch.arange(0, 32 * 32, 37)
    selection = Selection(
        ["blocks.0.attn.q.weight", "blocks.0.attn.v.weight", "blocks.1.attn.k.weight"],
        ["blocks.0.attn.k.bias"],
        {name: places + i for i, name in enumerate(("blocks.0.attn.k.weight", "blocks.1.attn.v.weight"))}
        | {"blocks.0.attn.v.bias": torch.tensor([3, 9])},
        shapes,
        Rule("lora", 2, fixed=32),
    )
    one = SPTModel(model, SPTConfig(r=2, drop=0.3, drop_path=0.3), selection)
    for parameter in one.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, 0, 0.1)
    three = copy.deepcopy(one)
    images, labels = batches()[0]
    found = []
    for which, joined in ((one, True), (three, False)):
        layers = [module for module in which.modules() if isinstance(module, SplitQKV)]
        assert all((layer.joined() is not None) == joined for layer in layers)
        which.train(training)
        torch.manual_seed(0)
        loss = F.cross_entropy(which(images), labels)
        loss.backward()
        grads = {n: p.grad for n, p in which.named_parameters() if p.grad is not None and "k.bias" not in n}
        found.append((loss.detach(), grads))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    three.to(torch.float64)
    assert all(m.joined() is not None for m in three.modules() if isinstance(m, SplitQKV))
    with one.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(one.eval()(images), tiny_vit().eval()(images))


def test_copy_model_leaves_the_backbone_alone() -> None:
    model = tiny_vit()
    values = measure_sensitivities(model, batches(), eval_mode=True)
    before = copy.deepcopy(model.state_dict())
    get_spt_model(model, SPTConfig(budget=1500, r=2), values, copy_model=True)
    assert same_bits(model, before) and all(p.requires_grad for p in model.parameters())
