"""The paper's pictures: that they draw, and that the numbers in them are the ledger's."""

from pathlib import Path

import torch

from ecoformer.figures.codes import draw_attention, draw_distances, draw_fits
from ecoformer.figures.energy_and_accuracy import draw_energy_and_accuracy, energies, published
from ecoformer.figures.three_attentions import draw_three_attentions
from paperkit.results.report import save_figure


def test_ledger_gives_the_published_energies() -> None:
    """To the digits that the authors print."""
    found = energies()
    for row in published():
        ours = found[row["network"]]
        assert abs(ours["ecoformer"] - row["energy_billion_pj"]) <= 0.05, row["network"]
        assert ours["ecoformer"] < ours["sra"] < ours["msa"]


def test_the_diagram_tells_the_cost_of_each() -> None:
    words = [text.get_text() for panel in draw_three_attentions().axes for text in panel.texts]
    costs = [word for word in words if "mul" in word]
    assert len(costs) == 3 and costs[0].startswith("1,268.6 M mul") and "18.0 M add" in costs[2]


def test_every_picture_is_written(tmp_path: Path) -> None:
    shares = {"similar": [0.5, 0.5], "dissimilar": [0.2, 0.8], "unlabelled": [0.0, 1.0]}
    fit = {"loss_before": [-1.0, 0.0], "loss_after": [-2.0, 1.0], "accepted": [1.0, 0.0]}
    drawn = {
        "distances": draw_distances({"before": shares, "after": shares}),
        "fits": draw_fits({"a": fit, "b": fit}),
        "attention": draw_attention(torch.rand(8, 8), {"map": torch.rand(64)}, 9, "one token"),
        "energy": draw_energy_and_accuracy(),
    }
    for name, picture in drawn.items():
        save_figure(picture, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
