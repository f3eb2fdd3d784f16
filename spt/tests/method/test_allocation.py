"""Allocation: thresholds, counts, the released sweep, and the exact search against trying every tau."""

import json
from importlib.resources import files

import pytest
import torch
from made import tiny_values

from paperkit.errors import UserError
from spt.method.allocation import Rule, rank_scalars, select
from spt.method.budget import exact_selection, official_selections, sweep, sweep_taus, totals
from spt.method.structured import module_cost

RULES = [
    Rule("lora", 2, 10, 5, fixed=32),
    Rule("adapter", 2, 4, 2, fixed=32),
    Rule("lora", 2, 1, 5, structured_vector=False, fixed=32),
    Rule("lora", 2, 10, 5, structured_only=True, fixed=32),
    Rule("none", fixed=32),
    Rule("lora", 2, 0.3, 5, fixed=32),  # a module cheaper than its marks: totals fall here and there
]


def _values(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "a.norm.weight": (12,),
        "a.q.weight": (10, 12),
        "a.q.bias": (10,),
        "a.fc1.weight": (24, 10),
        "a.fc1.bias": (24,),
    }
    return {name: torch.rand(shape, generator=generator) ** 4 for name, shape in shapes.items()}


def test_ranking_is_the_sorted_order() -> None:
    values = _values(0)
    ranking = rank_scalars(values, 10**6)
    flat = torch.cat([value.flatten() for value in values.values()])
    starts = torch.tensor([0, 12, 132, 142, 382])
    positions = starts[ranking.owner] + ranking.flat
    assert torch.equal(flat[positions], flat.sort(descending=True).values)
    assert positions.unique().numel() == flat.numel()


def test_ties_take_the_earlier_parameter() -> None:
    ranking = rank_scalars({"a.q.weight": torch.ones(2, 2), "a.k.weight": torch.ones(2, 2)}, 5)
    assert ranking.owner.tolist() == [0, 0, 0, 0, 1] and ranking.flat.tolist() == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.structured_type}-{rule.alpha}-{rule.structured_only}")
@pytest.mark.parametrize("seed", range(4))
def test_exact_search_equals_trying_every_tau(rule: Rule, seed: int) -> None:
    values = _values(seed)
    ranking = rank_scalars(values, 10**6)
    every = [select(ranking, tau, rule).counted for tau in range(1, len(ranking) + 1)]
    assert totals(ranking, rule).tolist() == every
    for budget in (90, 140, 200, 300):
        found = exact_selection(values, rule, budget)
        assert found.counted == max(total for total in every if total <= budget)


@pytest.mark.parametrize(
    "rule", RULES[:5], ids=lambda rule: f"{rule.structured_type}-{rule.alpha}-{rule.structured_only}"
)
def test_sweep_from_one_ranking_equals_79_selections(rule: Rule) -> None:
    values = tiny_values()
    ranking = rank_scalars(values, max(sweep_taus(2604)))
    for point in sweep(ranking, rule, 2604):
        selection = select(ranking, point.tau, rule)
        assert (point.sparse, point.structured) == (selection.sparse_count, selection.structured_count)
        assert (point.modules, point.vectors) == (len(selection.modules), len(selection.vectors))


def test_taus_of_the_released_sweep() -> None:
    """Binary floating point makes four of them one larger."""
    taus = sweep_taus()
    assert [i + 1 for i, tau in enumerate(taus) if tau != (i + 1) * 20_000] == [35, 41, 57, 70]


def test_a_budget_out_of_reach_has_no_official_selection() -> None:
    found = official_selections(tiny_values(), Rule("lora", 2, fixed=32), 2604, budgets=(0.4, 0.001))
    assert set(found) == {0.4}


def test_a_matrix_never_gets_both() -> None:
    selection = exact_selection(tiny_values(), Rule("lora", 2, fixed=32), 1200)
    assert selection.modules and selection.entries
    assert not set(selection.modules) & set(selection.entries)
    assert not set(selection.vectors) & set(selection.entries)


@pytest.mark.parametrize(
    ("kind", "expected"), [("lora", (12_288, 30_720, 1_327_104)), ("adapter", (13_064, 52_232, 1_410_624))]
)
def test_costs_of_vit_b(kind: str, expected: tuple[int, int, int]) -> None:
    """One square matrix, fc1, and every matrix of ViT-B."""
    square, fc1, fc2 = torch.Size([768, 768]), torch.Size([3072, 768]), torch.Size([768, 3072])
    rule = Rule(kind)
    everything = 12 * (4 * rule.cost(square) + rule.cost(fc1) + rule.cost(fc2))
    assert (rule.cost(square), rule.cost(fc1), everything) == expected
    assert rule.threshold(square) == {"lora": 1228.8, "adapter": 1306.4}[kind]


@pytest.mark.parametrize("search", ["exact", "official"])
def test_an_adapters_biases_are_counted_with_or_without_vectors(search: str) -> None:
    """2 r O + r + O whatever `structured_vector` says; LoRA never had a bias."""
    square = torch.Size([768, 768])
    assert {Rule("adapter", structured_vector=on).cost(square) for on in (True, False)} == {13_064}
    assert {Rule("lora", structured_vector=on).cost(square) for on in (True, False)} == {12_288}
    rule = Rule("adapter", 2, structured_vector=False, fixed=32)
    if search == "exact":
        selection = exact_selection(tiny_values(), rule, 2000)
    else:
        selection = official_selections(tiny_values(), rule, unit=2604, budgets=(0.8,))[0.8][1]
    outputs = [selection.shapes[name][0] for name in selection.modules]
    assert outputs and not selection.vectors
    modules = sum(2 * 2 * out + 2 + out for out in outputs)
    assert selection.structured_count == modules and selection.counted == modules + selection.sparse_count + 32


def test_counts_of_all_released_selections() -> None:
    """266 files: structured parameters are modules times cost plus whole vectors of 768 or 3072."""
    table = json.loads(files("spt").joinpath("published/released_selections.json").read_text())
    shapes = [torch.Size(s) for s in [(768, 768)] * 4 + [(3072, 768), (768, 3072)]]
    checked = 0
    for kind, tasks in table.items():
        for budgets in tasks.values():
            for entry in budgets.values():
                modules = sum(
                    module_cost(kind, shape, 8)
                    for row in entry["matrices"]
                    for flag, shape in zip(row, shapes, strict=True)
                    if flag == "1"
                )
                vectors, wide = entry["structured"] - modules, entry["n_tuned_vectors"]
                assert vectors % 768 == 0 and wide * 768 <= vectors <= wide * 3072
                total = entry["unstructured"] + entry["structured"] + 768
                assert total / 1e6 == pytest.approx(entry["params_million"], abs=2e-6)
                checked += 1
    assert checked == 266


@pytest.mark.parametrize(
    ("rule", "budget", "words"),
    [
        (Rule("lora", 2, fixed=32), 100, "smaller than one lora module of rank 2"),
        (Rule("none", fixed=32), 32, "smaller than one entry"),
        (Rule("lora", 2, fixed=32), 10**9, "larger than the model"),
    ],
)
def test_impossible_budgets(rule: Rule, budget: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        exact_selection(tiny_values(), rule, budget)


def test_zero_and_broken_sensitivities_are_named() -> None:
    values = {name: torch.zeros_like(value) for name, value in tiny_values().items()}
    with pytest.raises(UserError, match="all sensitivities are zero: a head of zeros"):
        exact_selection(values, Rule("lora", 2, fixed=32), 1000)
    values["blocks.1.mlp.fc1.bias"][3] = float("nan")
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1\.bias"):
        official_selections(values, Rule("lora", 2, fixed=32), 2604)
