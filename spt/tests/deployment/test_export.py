"""A trained delta in use: predicted, served, merged and exported, always with the same answer."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from made import SIZES, spt
from safetensors.torch import load_file

from paperkit.testing.commands import clean_environment
from spt.deployment.task_model import open_task, read_image
from spt.models.backbones import create_backbone
from spt.models.hub_model import SPTClassifier


def test_predict_serve_and_export_agree(lists: Path, tmp_path: Path) -> None:
    run, backbone = lists / "runs" / "spt" / "one", lists / "backbone.safetensors"
    image = lists / "vtab" / "svhn" / "images" / "test" / "000001.jpg"
    tuned = open_task(run / "delta", str(backbone))
    x = read_image(image, 32)
    with torch.no_grad():
        expected = tuned(x)
    top = int(expected.argmax())
    common = ["--file", backbone]
    for ckpt in (run, run / "delta"):
        assert f"class {top} " in spt.here("predict", image, "--ckpt", ckpt, *common, cwd=tmp_path).out
    lines = f"a {image}\nb {image}\nmissing {image}\na nowhere.jpg\n"
    script = Path(sys.executable).with_name("spt")
    served = subprocess.run(
        [script, "serve", "--deltas.a", run, "--deltas.b", run / "delta", *common],
        input=lines, capture_output=True, text=True, check=True, env=clean_environment(),
    )  # fmt: skip
    answers = [json.loads(line) for line in served.stdout.splitlines()]
    assert [answer.get("top", [[None]])[0][0] for answer in answers[:2]] == [top, top]
    assert "no delta named missing" in answers[2]["error"] and "no image at nowhere.jpg" in answers[3]["error"]

    batch = torch.cat([x, x.flip(-1), -x])
    with torch.no_grad():
        logits = tuned(batch)

    def exported(form: str, name: str, *more: str) -> Path:
        target = tmp_path / name
        out = spt.here("export", "--ckpt", run, "--to", form, "--output", target, *common, cwd=tmp_path).out
        assert f"written: {target}" in out
        return target

    plain = create_backbone("vit_tiny_patch16_224", 10, img_size=32, **SIZES)
    plain.load_state_dict(load_file(exported("weights", "m.safetensors")))
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(batch), logits, rtol=1e-5, atol=1e-5)
        assert torch.equal(SPTClassifier.from_pretrained(exported("hub", "hub"))(batch), logits)
    session = onnxruntime.InferenceSession(exported("onnx", "m.onnx"))
    np.testing.assert_allclose(session.run(None, {"images": batch.numpy()})[0], logits.numpy(), rtol=1e-4, atol=1e-4)
    program = torch.export.load(exported("torch_export", "m.pt2")).module()
    torch.testing.assert_close(program(batch), logits, rtol=1e-5, atol=1e-5)
    assert (exported("peft", "peft") / "adapter_config.json").is_file()


def test_exports_lie_below_the_paper(lists: Path, tmp_path: Path) -> None:
    """Without `--output`: `<root>/spt/export`, which `make spt-clean` removes."""
    spt.here("export", "--ckpt", lists / "runs/spt/one", "--file", lists / "backbone.safetensors", cwd=tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")] == ["runs/spt/export/one-weights.safetensors"]
