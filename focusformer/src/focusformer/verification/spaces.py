"""Reference files of the search, recomputed: counts, uniform sampling and evolution."""

import random

import torch
from torch import Tensor

from focusformer.method.architecture import SPACES, Architecture, SearchSpace
from focusformer.method.cost import official_flops, params
from focusformer.method.evolution import EvolutionSettings, evolve
from focusformer.method.search import Tally
from focusformer.method.supernet import Supernet
from focusformer.verification.layers import Computed, count
from paperkit.errors import UserError
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import check_options

NAMES = {"T": "ti", "S": "s", "B": "b"}
"""Our names of the spaces that the files call by a letter."""


def _space(name: str) -> SearchSpace:
    if name not in NAMES:
        raise UserError(f"space {name!r} does not exist; known: {', '.join(NAMES)}")
    return SPACES[NAMES[name]]


def _row(architecture: Architecture, length: int) -> list[float]:
    """[depth, embed, heads, ratios], both lists padded to the super depth by zeros."""
    padding = [0] * (length - architecture.depth)
    return [architecture.depth, architecture.embed, *architecture.heads, *padding, *architecture.ratios, *padding]


def _rows(architectures: list[Architecture], length: int) -> Tensor:
    rows = [_row(architecture, length) for architecture in architectures]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 2 * length + 2)


def _architecture(row: list[float], length: int) -> Architecture:
    depth = int(row[0])
    heads, ratios = row[2 : 2 + depth], row[2 + length : 2 + length + depth]
    return Architecture(int(row[1]), tuple(map(int, heads)), tuple(ratios))


def counts(file: ReferenceFile) -> Computed:
    """Parameters, official FLOPs and sizes of spaces."""
    c, computed = file.config, Computed()
    options = {name: c[name] for name in ("img_size", "patch_size", "num_classes")}
    for name, given in c["spaces"].items():
        check_options(given, ("supernet", "search_space", "architectures"), f"spaces.{name}")
        supernet = {**given["supernet"], **options}
        space = SearchSpace.from_plain({"SUPERNET": supernet, "SEARCH_SPACE": given["search_space"]})
        sizes = space.sizes
        if c["sequence_length_argument"] != sizes.patches:
            raise UserError(f"counts for {c['sequence_length_argument']} patches, {sizes.patches} in the images")
        rows = file.inputs[f"{name}.architectures"].tolist()
        architectures = [_architecture(row, sizes.depth) for row in rows]
        for architecture in architectures:
            sizes.check(architecture)
        with torch.device("meta"):
            stored = sum(parameter.numel() for parameter in Supernet(sizes).parameters())
        flops = [official_flops(sizes, architecture) for architecture in architectures]
        computed |= {
            f"out.{name}.params": torch.tensor([params(sizes, architecture) for architecture in architectures]),
            f"out.{name}.flops": torch.tensor(flops, dtype=torch.float64),
            f"out.{name}.search_space_size": count(space.size()),
            f"out.{name}.supernet_total_params": count(stored),
        }
    return computed


def uniform_sampling(file: ReferenceFile) -> Computed:
    """Draws of the official uniform sampler."""
    c, computed = file.config, Computed()
    for letter in {name.split(".")[0] for name in file.outputs}:
        space = _space(letter)
        for seed in c["seeds"]:
            rng = random.Random(seed)
            drawn = [space.sample_uniform(rng) for _ in range(c["n"])]
            computed[f"out.{letter}.seed{seed}"] = _rows(drawn, space.sizes.depth)
    return computed


_ARGUMENTS = {
    "max_epochs": "generations", "population_num": "population", "select_num": "parents",
    "mutation_num": "mutations", "crossover_num": "crossovers", "m_prob": "layer_probability",
    "s_prob": "size_probability",
}  # fmt: skip


def _stand_in(architecture: Architecture, millions: float) -> float:
    """The formula that stands for accuracy in the files, summed left to right."""
    a = architecture
    wide = sum((i + 1) * ratio for i, ratio in enumerate(a.ratios))
    uneven = sum(abs(heads - 3.5 - (i % 2)) for i, heads in enumerate(a.heads))
    return 80 - 20 / millions + wide / a.depth**2 - 0.1 / a.depth * uneven


def evolution_search(file: ReferenceFile) -> Computed:
    """The whole trace of an evolutionary search within limits of parameters."""
    c = file.config
    check_options(c["args"], _ARGUMENTS, "args")
    space = _space(c["space"])
    settings = EvolutionSettings(**{_ARGUMENTS[name]: value for name, value in c["args"].items()})

    def millions(architecture: Architecture) -> float:
        return params(space.sizes, architecture) / 10**6

    tally = Tally(
        score=lambda a: _stand_in(a, millions(a)),
        feasible=lambda a: c["min_param_limits_M"] <= millions(a) <= c["param_limits_M"],
    )
    trace = evolve(space, tally, random.Random(c["seed"]), settings)

    def rows(architectures: list[Architecture]) -> Tensor:
        return _rows(architectures, space.sizes.depth)

    def scores(architectures: list[Architecture]) -> Tensor:
        return torch.tensor([tally.evaluate(a) for a in architectures], dtype=torch.float64)

    computed: Computed = {
        "out.evaluate_calls": count(2 * tally.evaluations),  # on the search set and on the test set
        "out.final_population": rows(trace.last_population),
    }
    for i, population in enumerate(trace.populations):
        computed |= {
            f"out.population.{i}": rows(population),
            f"out.population_acc.{i}": scores(population),
            f"out.population_params.{i}": torch.tensor([millions(a) for a in population], dtype=torch.float64),
            f"out.top_accuracies.{i}": torch.tensor(trace.top_scores[i], dtype=torch.float64),
        }
    for length, best in trace.top.items():
        computed |= {f"out.top{length}": rows(best), f"out.top{length}_acc": scores(best)}
    return computed
