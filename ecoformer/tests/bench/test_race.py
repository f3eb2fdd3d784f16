"""The bench, shortened: what it races computes what it says, and what it writes."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from ecoformer.bench import forms, race
from ecoformer.bench.memory import attention_peak
from ecoformer.commands import bench
from ecoformer.method.attention import EcoFormerAttention, fit_hashes
from ecoformer.method.fused_attention import compiled_attention, fuse, fused_attention
from ecoformer.method.hash_fit import FitOptions, fit_projection
from ecoformer.method.kernel_hash import KernelHash, bandwidth, kernel_values, normalise, squared_distances
from ecoformer.method.linear_attention import linear_attention
from ecoformer.method.similarity import pair_labels
from paperkit.command.cli import make_parser
from paperkit.errors import UserError


@pytest.mark.parametrize("mode", ["released", "global"])
def test_the_fused_form_is_the_method(mode: str) -> None:
    qk, v, (anchor, mvec, A, bias) = forms.attention_inputs(196, 32)
    qk[0, 0, 7] = 0  # a token without a direction
    hash_ = KernelHash(1, 32, forms.BITS, forms.SUPPORTS)
    hash_.set_fit(A, mvec, anchor)
    codes = hash_(normalise(qk))
    expected = linear_attention(codes, codes, v, bias, mode)
    found = fused_attention(qk, v, anchor, mvec, A, bias, mode)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(
            compiled_attention()(qk, v, anchor, mvec, A, bias, mode), expected, rtol=1e-4, atol=1e-6
        )


def test_rivals_compute_what_they_are_named_after() -> None:
    qk, v, _ = forms.attention_inputs(196, 32, heads=2)
    eco, rivals = forms.attention_steps(196, 32, heads=2, half=True, compile_them=False)
    expected = eco()
    torch.testing.assert_close(rivals[forms.RELEASED](), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(rivals[forms.EXPLICIT](), rivals[forms.SDPA](), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rivals[forms.SDPA_HALF]().float(), rivals[forms.SDPA](), rtol=0.1, atol=0.1)
    torch.testing.assert_close(rivals[forms.EAGER](), expected, rtol=1e-4, atol=1e-6)
    phi = torch.nn.functional.elu(qk) + 1
    weights = phi @ phi.mT
    torch.testing.assert_close(rivals[forms.ELU](), weights @ v / weights.sum(-1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_the_dense_fit_finds_the_same_projection() -> None:
    qk, _, (anchor, mvec, start, _) = forms.attention_inputs(196, 32)
    u = normalise(qk)
    kernel = kernel_values(squared_distances(u, anchor), bandwidth(u, anchor)) - mvec
    labels, options = pair_labels(u, 10), FitOptions(lr=0.2, iterations=20)
    fitted, *_ = fit_projection(kernel, labels, start, options)
    torch.testing.assert_close(forms.dense_fit(kernel, labels, start, options), fitted, rtol=1e-3, atol=1e-4)
    assert not torch.equal(fitted, start)


def test_a_fused_network_is_the_network() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(EcoFormerAttention(16, 2, 8, 6, fit=FitOptions(topk=3))).eval()
    x = torch.randn(2, 40, 16)
    with pytest.raises(UserError, match="the hash of 0 was never fitted"):
        fuse(layer, compiled=False)
    fit_hashes(layer, x)
    fast = fuse(layer, compiled=False)
    torch.testing.assert_close(fast(x), layer(x), rtol=1e-4, atol=1e-5)
    assert fast.state_dict().keys() == layer.state_dict().keys()
    causal = torch.nn.Sequential(EcoFormerAttention(16, 2, 8, 6, causal=True))
    with pytest.raises(UserError, match="neither causal"):
        fuse(causal)


def test_memory_grows_with_the_tokens_not_with_their_pairs() -> None:
    ours, theirs = (attention_peak(name, 3136, 32) for name in (forms.ECO, forms.EXPLICIT))
    scores = 3136**2 * 4 / 2**20
    assert theirs > scores > 8 * ours > 0


def test_lines_and_crossovers() -> None:
    slope, start, explained = race.line_through([(1, 3), (2, 5), (3, 7)])
    assert (round(slope, 9), round(start, 9), round(explained, 9)) == (2, 1, 1)
    setting = {"heads": 1, "width": 64, "threads": 1, "form": forms.SDPA}
    rows = [{**setting, "tokens": n, "over_eco": r} for n, r in ((100, 0.5), (400, 2.0))]
    for some, text in ((rows, "about 200"), (rows[1:], "below 400"), (rows[:1], "above 100")):
        ((found, between),) = race.crossovers(some).items()
        assert found == (1, 64, 1) and race.crossing(between) == f"{text} tokens"


def test_aims_are_counted_and_the_missed_ones_named() -> None:
    rows = [
        {"form": "a", "tokens": 9, "over_eco": r, "aim": aim, "met": r >= 2} for r, aim in ((3, 2), (1, 2), (1, None))
    ]
    assert race.missed({"attention": rows}) == (2, ["attention: form a, tokens 9: 1 of 2"])


def test_a_panel_for_each_part_that_was_measured(tmp_path: Path) -> None:
    times = {"over_eco": 2.0, "q25": 1.9, "q75": 2.1, "ms": 1.0, "aim": None, "met": None}
    found = {
        "attention": [
            {"heads": heads, "width": 64, "threads": 1, "tokens": tokens, "form": form, **times}
            for heads in (1, 8)
            for tokens in (196, 784)
            for form in (forms.SDPA, forms.READING)
        ],
        "fit": [{"tokens": 784, "iterations": 100, **times}],
        "memory": [{"tokens": tokens, "form": forms.ECO, "MiB": tokens / 1000} for tokens in (784, 3136)],
        "networks": [{"size": 224, "form": "sra", **times}],
    }
    widths = []
    for some in (found, {"memory": found["memory"]}):
        race.draw(some, path := tmp_path / "bench.png")
        widths.append(Image.open(path).width)
    assert widths[0] > 4 * widths[1]


def test_the_command_writes_its_result(tmp_path: Path) -> None:
    parser = make_parser("ecoformer bench")
    bench.add_arguments(parser)
    words = ["--quick", "--parts", '["fit"]', "--output", str(tmp_path)]
    assert bench.run(parser.parse_args(words)) == 0
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["fit"][0]["over_eco"] > 0 and content["fit"][0]["A differs by"] < 1e-5
    assert (tmp_path / "bench.png").stat().st_size > 1000
    with pytest.raises(UserError, match="threads 0 is below 1"):
        bench.run(parser.parse_args(["--threads", "0"]))
