"""The criterion: exact on fused and split models, one gradient at a time, repeatable, and refused when it says
nothing."""

import copy
from pathlib import Path

import pytest
import torch
from made import batches, tiny_swin, tiny_vit
from torch import nn
from torch.nn import functional as F

from paperkit.errors import UserError
from spt import SPTConfig, get_spt_model
from spt.method.candidates import find_candidates
from spt.method.sensitivity import load_sensitivities, measure_sensitivities, save_sensitivities, squared_gradients
from spt.method.split_qkv import split_qkv_layers


def test_fused_and_split_models_agree() -> None:
    fused = measure_sensitivities(tiny_vit(), batches(), eval_mode=True).values
    split = measure_sensitivities(split_qkv_layers(tiny_vit()), batches(), eval_mode=True).values
    assert list(fused) == list(split)
    for name in fused:
        torch.testing.assert_close(fused[name], split[name], rtol=1e-4, atol=1e-9)


def test_equals_plain_gradients() -> None:
    """Sum over batches of the squared batch-mean gradient, no division."""
    model = tiny_vit()
    expected = torch.zeros(32, 128)
    for images, labels in batches():
        model.zero_grad()
        F.cross_entropy(model.eval()(images), labels).backward()
        expected += model.blocks[1].mlp.fc2.weight.grad ** 2
    values = measure_sensitivities(tiny_vit(), batches(), eval_mode=True).values
    torch.testing.assert_close(values["blocks.1.mlp.fc2.weight"], expected)


def test_per_sample_is_the_sum_over_images() -> None:
    images, labels = batches(1)[0]
    singles = [(images[i : i + 1], labels[i : i + 1]) for i in range(len(labels))]
    by_hand = measure_sensitivities(tiny_vit(), singles, eval_mode=True).values
    values = measure_sensitivities(tiny_vit(), [(images, labels)], eval_mode=True, per_sample=True).values
    for name in values:
        torch.testing.assert_close(values[name], by_hand[name], rtol=1e-4, atol=1e-10)


def test_never_more_than_one_gradient_is_alive() -> None:
    """Gradients and accumulators beyond the weights: at most 1.1 times the weights."""
    model = tiny_vit(depth=6)
    parameters = dict(model.named_parameters())
    weights = sum(p.numel() for p in parameters.values())
    peak = 0
    with squared_gradients(parameters) as sums:

        def look(_: torch.Tensor) -> None:
            nonlocal peak
            peak = max(peak, sum(p.grad.numel() for p in parameters.values() if p.grad is not None))

        # Registered after the accumulating hook of each parameter, so a gradient that was not freed would be seen.
        handles = [p.register_post_accumulate_grad_hook(look) for p in parameters.values()]
        before = [p.register_hook(lambda grad: None) for p in parameters.values()]
        F.cross_entropy(model(batches(1)[0][0]), batches(1)[0][1]).backward()
        for handle in [*handles, *before]:
            handle.remove()
        state = sum(s.numel() for s in sums.values())
    largest = max(p.numel() for p in parameters.values())
    assert peak == 0 and all(p.grad is None for p in parameters.values())
    assert (state + largest) / weights <= 1.1


def test_model_is_left_as_it_was() -> None:
    model = tiny_vit().requires_grad_(False).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    measure_sensitivities(model, batches(), heads=3)
    assert not model.training and all(not p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_drop_path_moves_with_the_seed_and_repeats() -> None:
    def run(seed: int) -> torch.Tensor:
        return measure_sensitivities(tiny_vit(drop_path_rate=0.5), batches(), seed=seed).values[
            "blocks.2.mlp.fc1.weight"
        ]

    assert torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2))


def test_deterministic_mode_has_no_drop_path() -> None:
    runs = [
        measure_sensitivities(tiny_vit(drop_path_rate=0.5), batches(), seed=s, deterministic=True).values
        for s in (1, 2)
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_heads_are_summed() -> None:
    one, four = (measure_sensitivities(tiny_vit(), batches(), heads=n, eval_mode=True) for n in (1, 4))
    name = "blocks.0.mlp.fc1.weight"
    assert four.identity["heads"] == 4 and bool((four.values[name] >= one.values[name]).all())
    assert not torch.allclose(four.values[name] / 4, one.values[name])


def test_swin_candidates() -> None:
    """Tables, patch merging and embedding stay frozen with a reason; q, k, v are told apart."""
    found = find_candidates(tiny_swin(), fixed=())
    names = set(found.shapes())
    assert "layers.0.blocks.1.attn.k.weight" in names and "norm.bias" in names
    assert found.shapes()["layers.1.blocks.0.attn.q.weight"] == (32, 32)
    assert {"layers.1.downsample.reduction.weight", "layers.0.blocks.0.attn.relative_position_bias_table"} <= set(
        found.frozen
    )
    assert not any("downsample" in name or "patch_embed" in name for name in names)
    values = measure_sensitivities(tiny_swin(), batches(side=32), fixed=(), eval_mode=True).values
    assert set(values) == names and float(values["layers.1.blocks.1.mlp.fc2.weight"].sum()) > 0


class TextModel(nn.Module):
    """Two pre-norm blocks of plain Linears over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(16), "up": nn.Linear(16, 32), "down": nn.Linear(32, 16)})
            for _ in range(2)
        )
        self.classifier = nn.Linear(16, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer["down"](torch.relu(layer["up"](layer["norm"](x))))
        return self.classifier(x.mean(1))


def test_a_text_model_of_plain_linears() -> None:
    torch.manual_seed(0)
    tokens = [(torch.randint(0, 11, (4, 5)), torch.randint(0, 6, (4,)))]
    values = measure_sensitivities(TextModel(), tokens, head="classifier", fixed=()).values
    assert list(values)[:4] == ["layers.0.norm.weight", "layers.0.norm.bias", "layers.0.up.weight", "layers.0.up.bias"]
    plain = TextModel()
    config = SPTConfig(budget=300, r=1, head="classifier", fixed=(), drop=0, drop_path=0)
    tuned = get_spt_model(copy.deepcopy(plain), config, values)
    assert tuned.selection.modules and tuned.selection.entries
    optimizer = torch.optim.AdamW(tuned.optimizer_groups(), lr=0.1)
    inputs, labels = tokens[0]
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(tuned(inputs), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < losses[0].item()
    with torch.no_grad():
        expected = tuned(inputs)
        merged = tuned.merge_and_unload()
        torch.testing.assert_close(merged(inputs), expected, rtol=1e-5, atol=1e-5)
    assert merged.state_dict().keys() == plain.state_dict().keys()


def test_torch_transformer_layers_are_refused_clearly() -> None:
    """Their fused path reads the weights itself, so a replaced Linear would be ignored."""
    with pytest.raises(UserError, match="no Linear in a repeated block"):
        find_candidates(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2), 2))


def test_zero_head_and_empty_task_are_named() -> None:
    model = tiny_vit()
    nn.init.zeros_(model.head.weight)
    with pytest.raises(UserError, match=r"the head \(head\) is all zeros"):
        measure_sensitivities(model, batches())
    with pytest.raises(UserError, match="training list is empty"):
        measure_sensitivities(tiny_vit(), [])


def test_file_keeps_values_order_and_identity(tmp_path: Path) -> None:
    measured = measure_sensitivities(tiny_vit(), batches())
    save_sensitivities(tmp_path / "s.safetensors", measured)
    loaded = load_sensitivities(tmp_path / "s.safetensors")
    assert loaded.identity == measured.identity and list(loaded.values) == list(measured.values)
    assert all(torch.equal(loaded.values[name], value) for name, value in measured.values.items())
