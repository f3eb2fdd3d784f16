"""The bench, shortened: what it races computes what it says, and what it writes."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from faseg.bench import forms, networks, race
from faseg.bench.memory import decoder_peak
from faseg.commands import bench
from paperkit.command.cli import make_parser
from paperkit.errors import UserError
from paperkit.results.metrics import Metrics, Row

TIMES = {"ratio": 2.0, "q25": 1.9, "q75": 2.1, "ms": 1.0}


def test_the_forms_compute_the_same_and_so_do_their_gradients() -> None:
    ours, plain = (forms.decoder_of(form, classes=3) for form in (forms.OURS, forms.PLAIN))
    maps = forms.decoder_maps(256, 192)
    for found, expected in zip(forms.inference(ours, maps), forms.inference(plain, maps), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    gradients = []
    for decoder in (ours, plain):
        forms.training(decoder, maps)
        named = {**dict(decoder.named_parameters()), **{f"map {i}": m for i, m in enumerate(forms.leaves(maps))}}
        gradients.append({name: tensor.grad for name, tensor in named.items()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, found in gradients[0].items():
        expected = gradients[1][name]
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max(), name


def test_memory_of_a_pass_is_measured() -> None:
    assert 1 < decoder_peak(forms.OURS, 256, 256, False) < 200


def test_aims_are_counted_and_the_missed_ones_named() -> None:
    rows = [{"network": name, "ratio": ratio, "aim": 0.95, "met": ratio < 1} for name, ratio in (("a", 1), ("b", 0.5))]
    assert race.missed({"model": rows}) == (2, ["model: a: 1, aim 0.95"])


def test_mask2former_of_transformers_takes_our_weights() -> None:
    pytest.importorskip("transformers")
    raced, image = networks.whole_networks((1, 1, 1, 1)), networks.image_of(64, 96)
    with torch.inference_mode():
        found = {name: network(image) for name, network in raced.items() if name != networks.FOCUSED}
    for name in (networks.SAME_BACKBONE, networks.BASELINE):
        for ours, theirs in zip(found[name], found[networks.THEIRS], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def write_run(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir(parents=True)
    (folder / "started").write_text("2026\n")
    (folder / "finished").write_text("2026\n")
    Metrics("faseg", [1], 1.0, rows, []).write(folder / "metrics.json")
    return folder


def test_what_omega_buys_is_told_from_a_run(tmp_path: Path) -> None:
    ious, macs = ((race.IOU, {4: 50.0, 16: 30.0}), (race.MACS, {4: 20.0, 16: 10.0}))
    rows = [Row(f"faseg, omega {o}", name, [value]) for name, of in (ious, macs) for o, value in of.items()]
    told = race.omega(str(write_run(tmp_path / "run", rows)))
    assert [(row["omega"], row["mIoU / GMAC"]) for row in told] == [(4, 2500), (16, 3000)]
    with pytest.raises(UserError, match="tells of no omegas"):
        race.omega(str(write_run(tmp_path / "other", [Row("base", race.IOU, [1.0])])))


def test_a_panel_for_each_part(tmp_path: Path) -> None:
    found: dict[str, race.Rows] = {
        "decoder": [
            {"picture": "64 x 64", "pass": race.FORWARD, "of": of, "ratio": 3.0, "aim": 2.0}
            for of in (race.TIME, race.MEMORY)
        ],
        "model": [{"network": name, **TIMES, "aim": None} for name in (networks.BASELINE, networks.FOCUSED)],
        "omega": [{"omega": o, "mIoU": 50.0 + o, "GMAC": 1 / o} for o in (1, 2, 4)],
    }
    widths = []
    for some in (found, {"model": found["model"]}):
        race.draw(some, path := tmp_path / "bench.png")
        widths.append(Image.open(path).size[0])
    assert widths[0] > 2 * widths[1]


def test_the_command_writes_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(race, "POINTS", (((256, 192), race.FORWARD),))
    monkeypatch.setattr(race, "decoder_peak", lambda form, *_: 1.0 if form == forms.OURS else 6.0)
    parser = make_parser("faseg bench")
    bench.add_arguments(parser)
    words = ["--quick", "--parts", '["decoder", "omega"]', "--output", str(tmp_path)]
    assert bench.run(parser.parse_args(words)) == 0
    content = json.loads((tmp_path / "bench.json").read_text())
    assert all(row["ratio"] > 0 for row in content["decoder"])
    assert (tmp_path / "bench.png").stat().st_size > 1000
    told = capsys.readouterr().out
    assert "omega left out: no finished embedded run" in told and "of 2 aims met" in told
    with pytest.raises(UserError, match="threads 0 is below 1"):
        bench.run(parser.parse_args(["--threads", "0"]))
    with pytest.raises(UserError, match="no run folder"):
        bench.run(parser.parse_args(["--parts", '["omega"]', "--run", str(tmp_path / "none")]))
