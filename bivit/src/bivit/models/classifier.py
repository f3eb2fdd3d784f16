"""A classifier in a folder of huggingface_hub's layout, all of it plain values: timm's name, sizes, what is binary.

    bivit.save_pretrained(model, "folder", arch="deit_small_patch16_224", config=bivit.METHODS["bivit"])
    model = bivit.from_pretrained("folder")            # timm's network, binarized; or packed, from a packed folder

The weights in it have timm's keys and, beside each binary weight with a learned scale, `scaling_factor`.
"""

import importlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bivit.models.architectures import build, told_architecture
from bivit.models.binarize import METHODS, BinaryConfig
from bivit.models.keys import SCALE, load_state, to_timm
from paperkit.errors import UserError
from paperkit.files.hub import CONFIG, WEIGHTS, SavedInFolder
from paperkit.files.weights import load_strict, read_metadata, read_weights

PACKED_MODEL, PACKED_FILE = "bivit.deployment.packed_model", "bivit.deployment.packed_file"
"""Packed networks. Named and imported when asked for: deployment builds on models, not the other way round."""
CARD = """---
{{ card_data }}
---

# BiViT

Vision transformer with weights and activations of one bit (arXiv 2211.07091), an image classifier.

Load it with `bivit.from_pretrained(FOLDER)`, and pack it with `bivit pack FOLDER`. What it was trained on, how well it
does and where it fails are facts of the training run that wrote these weights: they stand in that run's `metrics.json`,
not here.
"""


class BinaryClassifier(
    nn.Module,
    SavedInFolder,
    library_name="bivit",
    license="apache-2.0",
    tags=["bivit", "image-classification"],
    model_card_template=CARD,
):
    """A network of timm's, binarized, as a folder describes it; its state dict is the network's own.

    Args:
        arch: timm's name.
        num_classes: K.
        binary: fields of `bivit.models.binarize.BinaryConfig`; None for a float network.
        options: further arguments of timm's constructor.

    Raises:
        UserError: what does not describe such a network.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int = 1000,
        binary: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # the numbers drawn here are replaced at once
            self.network = build(arch, num_classes, None if binary is None else binary_config(binary), options)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K)."""
        return self.network(images)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The network's, without a prefix."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The network's, without a prefix."""
        return self.network.load_state_dict(state_dict, strict, assign)


def binary_config(content: Mapping[str, Any]) -> BinaryConfig:
    """A config from plain values.

    Raises:
        UserError: a field that it does not have.
    """
    known = {field.name for field in fields(BinaryConfig)}
    if strange := sorted(set(content) - known):
        raise UserError(f"binary has no {', '.join(strange)[:100]}; there are {', '.join(sorted(known))}")
    return BinaryConfig(**content)


def save_pretrained(
    network: nn.Module,
    folder: str | Path,
    arch: str,
    config: BinaryConfig | None = None,
    options: Mapping[str, Any] | None = None,
    form: str = "timm",
) -> None:
    """Writes a folder of a network that `binarize` made, or of a float one.

    Args:
        arch: timm's name of what it was made from. config: what was binarized. options: its further sizes.
        form: whose names the file had that it came from, for the way back.

    Raises:
        UserError: weights that do not fit that description; then nothing is written.
    """
    classes = getattr(network, "num_classes", 1000)
    saved = BinaryClassifier(arch, classes, None if config is None else asdict(config), dict(options or {}))
    load_strict(saved, network.state_dict(), f"the {type(network).__name__}")
    saved.weights_metadata = {"format": "pt", "form": form}  # type: ignore[misc]  # this object's own
    saved.save_pretrained(folder)


def from_pretrained(folder: str | Path) -> nn.Module:
    """The network of a folder in eval mode, of timm's class; from a folder of `bivit pack` the packed one.

    Raises:
        UserError: a missing, damaged or foreign file, or weights that do not fit the config.
    """
    if is_packed(folder):
        return importlib.import_module(PACKED_FILE).read_packed(Path(folder))
    return BinaryClassifier.from_pretrained(folder).network


def runs_on_bits(network: nn.Module) -> bool:
    """Whether a network is packed."""
    return any(type(module).__name__ == "PackedLinear" for module in network.modules())


def packed(network: nn.Module) -> nn.Module:
    """The same network on bits (`bivit.pack`); itself if it is that already."""
    if runs_on_bits(network):
        return network
    return importlib.import_module(PACKED_MODEL).pack(network)


def is_packed(folder: str | Path) -> bool:
    """Whether a folder holds packed weights."""
    path = Path(folder)
    return path.is_dir() and (path / WEIGHTS).is_file() and not (path / CONFIG).is_file()


def load_classifier(
    path: str | Path,
    trust_pickle: bool = False,
    arch: str | None = None,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A classifier in eval mode from a run, a folder, a packed file, or a file of timm's, DeiT's or Microsoft's names.

    Args:
        arch: of a file; without, the published one that it fits.
        method: how a file is binarized, of `METHODS`, or "float"; without, by its scales.
        options: sizes of a file's network.

    Raises:
        UserError: what cannot be read, or does not fit.
    """
    path = Path(path)
    if (path / "model").is_dir() and (path / "started").is_file():
        path = path / "model"
    if path.is_dir():
        return from_pretrained(path)
    if path.suffix == ".safetensors" and "zero_rule" in read_metadata(path):
        return importlib.import_module(PACKED_FILE).read_packed(path)
    state, _ = to_timm(read_weights(path, trust_pickle))
    described = describe(state, str(path), arch, method, options)
    model = BinaryClassifier(**described).network
    load_state(model, state, str(path))
    return model.eval()


def describe(
    state: Mapping[str, Tensor],
    source: str,
    arch: str | None = None,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of `BinaryClassifier` for weights in timm's keys.

    Scales alone say that weights are of BiViT; of a network without them the method has to be told, else it is float.
    With scales in the attention alone, the MLPs are float (first stage of CLB).

    Raises:
        UserError: an unknown network or method, or weights without a classifier.
    """
    arch = arch or told_architecture(state, source)
    head = next((state[key] for key in ("head.weight", "head.fc.weight") if key in state), None)
    if head is None or head.ndim != 2:
        raise UserError(f"{source} has no classifier (head.weight); this command is for classifiers")
    config = method_config(method, state)
    binary = None if config is None else asdict(config)
    return {"arch": arch, "num_classes": len(head), "binary": binary, "options": dict(options or {})}


def method_config(method: str | None, state: Mapping[str, Tensor]) -> BinaryConfig | None:
    """What a method's name, `NAME` or `NAME-BITS` (bivit-w1a1), or without one the scales among weights, say.

    Raises:
        UserError: an unknown name.
    """
    if method is None:
        scales = [key for key in state if key.endswith(f".{SCALE}")]
        if not scales:
            return None
        mlp = any(".mlp." in key for key in scales)
        return BinaryConfig(mlp="w1a32" if mlp else "float")
    name, _, bits = method.partition("-")
    if method == "float":
        return None
    if name not in METHODS or bits not in ("", "w1a1", "w1a32"):
        known = ", ".join(["float", *METHODS])
        raise UserError(f"no method '{method}'; there are {known}, each also as NAME-w1a1 and NAME-w1a32")
    return binary_config({**asdict(METHODS[name]), **({"mlp": bits} if bits else {})})
