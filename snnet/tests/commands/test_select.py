"""`snnet select` and `snnet latency`: budgets of costs and of measured time."""

import json
import shutil
from pathlib import Path

import pytest
from made import here, one_line

from snnet.method.counting import configuration_macs, parameters
from snnet.models.anchors import load_folder

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def costs(folder: Path, size: int = 32) -> tuple[list[int], list[int]]:
    network, _ = load_folder(folder)
    return configuration_macs(network, (3, size, size)), parameters(network)


def test_select_within_budgets(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without accuracies: the dearest that all budgets allow, on the boundary too."""
    macs, params = costs(networks / "vit")
    chosen = sorted(range(9), key=lambda i: macs[i])[4]
    assert here("select", "--ckpt", networks / "vit", "--flops", repr(float(macs[chosen]))) == 0
    assert macs[int(capsys.readouterr().out.split()[0])] == macs[chosen]
    assert here("select", "--ckpt", networks / "vit", "--params", repr(float(params[0]))) == 0
    assert int(capsys.readouterr().out.split()[0]) == 0
    assert here("select", "--ckpt", networks / "vit") == 0
    assert macs[int(capsys.readouterr().out.split()[0])] == max(macs)


def test_a_budget_that_no_stitch_meets_names_the_nearest(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    macs, _ = costs(networks / "vit")
    cheapest = min(range(9), key=lambda i: macs[i])
    assert here("select", "--ckpt", networks / "vit", "--flops", str(macs[cheapest] - 1)) == 1
    message = one_line(capsys)
    assert f"no configuration meets flops {macs[cheapest] - 1:,.6g}" in message
    assert f"the nearest is {cheapest} (vit_tiny_patch16_224: flops {macs[cheapest]:,.6g})" in message
    assert here("select", "--ckpt", networks / "vit", "--flops", "0") == 1
    assert "the nearest is" in one_line(capsys)


def test_latency_then_select(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("vit")
    shutil.copytree(networks / "vit", folder)
    assert here("select", "--ckpt", folder, "--latency", "5") == 1
    assert "measure them on this machine with `snnet latency`" in one_line(capsys)
    assert here("latency", "--ckpt", folder, "--seconds", "0.001") == 0
    kept = json.loads((folder / "latency.json").read_text())
    measured = {int(i): value for i, value in kept["milliseconds"].items()}
    assert sorted(measured) == list(range(9)) and all(0 < value < 10_000 for value in measured.values())
    assert kept["threads"] == 1
    capsys.readouterr()
    limit = sorted(measured.values())[3]
    assert here("select", "--ckpt", folder, "--latency", repr(limit)) == 0
    macs, _ = costs(folder)
    allowed = [i for i in range(9) if measured[i] <= limit]
    assert macs[int(capsys.readouterr().out.split()[0])] == max(macs[i] for i in allowed)
    assert here("select", "--ckpt", folder, "--latency", repr(min(measured.values()) / 2)) == 1
    assert "no configuration meets latency" in one_line(capsys)
