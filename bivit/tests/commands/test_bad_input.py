"""What users of BiViT get wrong, through the command: one line each, no traceback, and nothing half written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made import DEIT, bivit, small_network
from PIL import Image

from bivit.models.binarize import METHODS
from bivit.models.classifier import save_pretrained
from paperkit.files.weights import save_weights

NAME = "deit_tiny_patch16_224"


class Danger:
    """What a pickle could run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good weights, and every kind of bad ones."""
    folder = tmp_path_factory.mktemp("bad")
    model = small_network()
    save_pretrained(model, folder / "good", NAME, METHODS["bivit"], DEIT)
    bivit.here("pack", folder / "good", "--output", folder / "packed.safetensors", cwd=folder)
    state = model.state_dict()
    (folder / "half.safetensors").write_bytes((folder / "packed.safetensors").read_bytes()[:3000])
    (folder / "text.pth").write_text("no weights")
    torch.save({"model": state, "hook": Danger()}, folder / "code.pth")
    save_weights(folder / "nan.safetensors", {**state, "norm.bias": torch.full((24,), float("nan"))})
    save_weights(folder / "plain.safetensors", state)
    save_weights(folder / "headless.safetensors", {k: v for k, v in state.items() if not k.startswith("head")})
    save_weights(folder / "other.safetensors", {"conv1.weight": torch.zeros(2, 3)})
    for name, change in {
        "name": {"arch": "hf-hub:someone/net"}, "field": {"binary": {"atention": "sab"}},
        "rule": {"binary": {"attention": "sum"}}, "reads": {"options": {**DEIT, "checkpoint_path": "/etc/passwd"}},
        "wide": {"options": {**DEIT, "embed_dim": 48}}, "deep": {"options": {**DEIT, "depth": 100000}},
        "bits": {"binary": {"mlp": "w1a1", "attention_linear": "mean"}}, "beta": {"binary": {"beta": "wide"}},
    }.items():  # fmt: skip
        save_pretrained(model, folder / name, NAME, METHODS["bivit"], DEIT)
        path = folder / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    Image.new("RGB", (80, 90)).save(folder / "image.png")
    return folder


PREDICT = ["predict", "image.png", "--size", "32", "--ckpt"]
SIZES = ["--arch", NAME, "--options", json.dumps(DEIT)]
CASES: dict[str, tuple[list[Any], str]] = {
    "missing": ([*PREDICT, "nowhere"], "nowhere"),
    "cut off": ([*PREDICT, "half.safetensors"], "half.safetensors is damaged"),
    "text": ([*PREDICT, "text.pth"], "text.pth is damaged or no checkpoint"),
    "code": ([*PREDICT, "code.pth"], "Danger, and a pickle that builds it can run code"),
    "nan": ([*PREDICT, "nan.safetensors"], "holds weights that are no numbers: norm.bias"),
    "headless": ([*PREDICT, "headless.safetensors", *SIZES], "has no classifier"),
    "another network": ([*PREDICT, "other.safetensors"], "holds weights of none of deit_tiny_patch16_224"),
    "another size": (["convert", "plain.safetensors", "new", "--arch", NAME], "does not fit VisionTransformer"),
    "no size told": (["convert", "plain.safetensors", "new"], "name the network with --arch, and its sizes"),
    "an unknown network": (["convert", "plain.safetensors", "new", "--arch", "vgg99"], "timm has no network 'vgg99'"),
    "an unknown method": ([*PREDICT, "plain.safetensors", *SIZES, "--method", "xor"], "no method 'xor'"),
    "a name of the network": ([*PREDICT, "name"], "timm has no network 'hf-hub:someone/net'"),
    "a field": ([*PREDICT, "field"], "binary has no atention; there are activation, attention"),
    "a rule": ([*PREDICT, "rule"], "attention 'sum'"),
    "an option that reads files": ([*PREDICT, "reads"], "checkpoint_path is no size of a network"),
    "another width": ([*PREDICT, "wide"], "does not fit BinaryClassifier"),
    "a huge network": ([*PREDICT, "deep"], "it describes a far larger model than model.safetensors holds"),
    "other bits": ([*PREDICT, "bits"], "4 unexpected: blocks.0.attn.proj.scaling_factor"),
    "no number": ([*PREDICT, "beta"], "config.json"),
    "another size of image": ([*PREDICT[:2], "--size", "40", "--ckpt", "good"], "--size 40"),
    "no image": (["predict", "none.png", "--size", "32", "--ckpt", "good"], "no image at none.png"),
    "a packed one to export": (["export", "--ckpt", "packed.safetensors", "--size", "32"], "run in this package alone"),
    "a suffix": (["convert", "good", "out.bin"], "out.bin must end in .pth, .pt or .safetensors"),
    "names": (["convert", "good", "out.pth", "--names", "microsoft"], "Microsoft's names are Swin's"),
    "an engine's own": (["eval", "--engine", "images", "--ckpt", "nowhere"], "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_line(case: str, folder: Path) -> None:
    words, says = CASES[case]
    before = {path for path in folder.rglob("*") if path.is_file()}
    assert says in bivit.refused(*words, cwd=folder)
    assert {path for path in folder.rglob("*") if path.is_file()} == before


def test_a_packed_file_predicts(folder: Path) -> None:
    packed, plain = (bivit.here(*PREDICT, path, cwd=folder).out for path in ("packed.safetensors", "good"))
    assert packed.split()[:3] == plain.split()[:3]
