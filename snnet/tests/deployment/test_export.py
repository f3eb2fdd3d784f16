"""`snnet export`: the files that one configuration becomes, against the network."""

from pathlib import Path

import pytest
import torch
from made import here, one_line

from snnet.deployment.extraction import SubNetwork
from snnet.method.counting import parameters
from snnet.method.stitching import mean_logits
from snnet.models.anchors import load_folder

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.mark.xdist_group("export")
@pytest.mark.parametrize(("family", "config_id", "size"), [("vit", 4, 32), ("levit", 2, 64)])
def test_export_onnx(
    family: str, config_id: int, size: int, networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """onnxruntime's logits are the network's, for every size of batch."""
    import onnxruntime

    words = ["--ckpt", networks / family, "--config-id", str(config_id), "--to", "onnx", "--output", "out"]
    assert here("export", *words) == 0
    assert "largest difference" in capsys.readouterr().out
    network, _ = load_folder(networks / family)
    session = onnxruntime.InferenceSession("out/model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, size, size)
        (found,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            expected = mean_logits(network.eval()(images, config_id))
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, mean_logits(network(images, 0)), atol=1e-2)


@pytest.mark.xdist_group("export")
@pytest.mark.parametrize(("family", "config_id", "size"), [("vit", 4, 32), ("levit", 2, 64)])
def test_export_torch(family: str, config_id: int, size: int, networks: Path) -> None:
    """A torch.export program and an extracted folder, with only the parameters of that stitch."""
    assert here("export", "--ckpt", networks / family, "--config-id", str(config_id), "--output", "out") == 0
    network, _ = load_folder(networks / family)
    program = torch.export.load("out/model.pt2")
    counted = parameters(network)[config_id]
    assert sum(p.numel() for p in program.parameters()) == counted
    alone = SubNetwork.load(Path("out"))
    for batch in (1, 4):
        images = torch.randn(batch, 3, size, size)
        with torch.no_grad():
            expected = mean_logits(network.eval()(images, config_id))
            torch.testing.assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(alone(images), expected, rtol=1e-5, atol=1e-5)


def test_a_wrong_export_is_not_passed_on(
    networks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the file read back differs from the network, the command fails and says so; an older file stays."""
    words = ["--ckpt", networks / "vit", "--config-id", "1", "--output", "out"]
    Path("out").mkdir()
    Path("out/model.pt2").write_text("the older file")
    monkeypatch.setattr("snnet.deployment.export.export_program", lambda model, example, path: 0.5)
    assert here("export", *words) == 1
    assert "out/model.pt2 was not written: it would differ from the network by 0.5" in one_line(capsys)
    assert [path.name for path in Path("out").iterdir()] == ["model.pt2"]
    assert Path("out/model.pt2").read_text() == "the older file"
