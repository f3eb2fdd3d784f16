"""Anchors by timm name, and the SN-Net built from names: what a config file, a checkpoint folder or the hub can
hold.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from paperkit.errors import UserError
from paperkit.files.weights import load_strict, read_weights, save_weights
from snnet.method.enumeration import LayerAssignment
from snnet.method.stitching import StitchedNetwork

AnchorName = str | Mapping[str, Any]
"""A timm model name, or {"name": ..., further arguments of timm.create_model}."""


class SNNet(StitchedNetwork, PyTorchModelHubMixin, library_name="snnet", tags=["snnet", "image-classification"]):
    """A stitched network described by names, so that `save_pretrained` and `from_pretrained` can rebuild it.

    Args:
        anchors: timm names, fast to slow; `{"name": ..., "depth": ...}` passes further arguments to
            `timm.create_model`.
        num_classes: K of every head.
        in_chans: channels of the images.
        nearest, window, stride, stitched_final_norm, layer_assignment, any_order: see `StitchedNetwork`.

    Example:
        >>> network = SNNet(["deit_tiny_patch16_224", "deit_small_patch16_224"])
        >>> logits = network.set_stitch(5)(images)
    """

    def __init__(
        self,
        anchors: Sequence[AnchorName],
        num_classes: int = 1000,
        in_chans: int = 3,
        nearest: bool = True,
        window: int = 2,
        stride: int = 1,
        stitched_final_norm: bool = True,
        layer_assignment: LayerAssignment = "released",
        any_order: bool = False,
    ) -> None:
        self.num_classes = num_classes
        self.anchor_names = [anchor if isinstance(anchor, str) else str(anchor["name"]) for anchor in anchors]
        super().__init__(
            [create_anchor(anchor, num_classes=num_classes, in_chans=in_chans) for anchor in anchors],
            nearest=nearest,
            window=window,
            stride=stride,
            stitched_final_norm=stitched_final_norm,
            layer_assignment=layer_assignment,
            any_order=any_order,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        """`model.safetensors`, written whole or not at all, with a checksum (the mixin adds config.json and the card).

        The second statistics of split BatchNorm, which only training uses, are left out.
        """
        weights = {key: value for key, value in self.state_dict().items() if ".aux_bn." not in key}
        save_weights(save_directory / "model.safetensors", weights)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        load_strict(model, read_weights(model_file), model_file)
        return model.to(map_location)


def load_folder(folder: Path) -> tuple[SNNet, dict[str, Any]]:
    """A network that `save_pretrained` wrote, and the arguments of `SNNet` that built it.

    Raises:
        UserError: if a file is missing or damaged, or the weights do not fit.
    """
    path = folder / "model.safetensors"
    try:
        description = json.loads((folder / "config.json").read_text())
        network = SNNet(**description)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} does not describe an SN-Net: {error}") from None
    load_strict(network, read_weights(path), str(path))
    return network, description


def create_anchor(anchor: AnchorName, weights: str | Path | bool = False, **options: Any) -> nn.Module:
    """One timm model.

    Args:
        weights: False for random weights; True for timm's own, from its cache or the hub; a folder that holds
            `<name>.safetensors` or `<name>.pth`, as timm or the authors of the anchor save it.
        options: further arguments of `timm.create_model`; those of the anchor itself come after them.

    Raises:
        UserError: if timm knows no such model, the options do not fit it, or the weights are not to be had.
    """
    given = {} if isinstance(anchor, str) else dict(anchor)
    name = anchor if isinstance(anchor, str) else str(given.pop("name"))
    options = {**options, **given}
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0].split('.')[0]}*")[:4]
        raise UserError(f"timm has no model '{name}'" + (f"; it has {', '.join(close)}" if close else ""))
    if weights not in (False, True):
        options["pretrained_cfg_overlay"] = {"file": str(_weight_file(Path(str(weights)), name))}
    try:
        return timm.create_model(name, pretrained=bool(weights), **options)
    except (TypeError, AssertionError) as error:
        raise UserError(f"timm cannot build {name} with {options}: {error}") from None
    except Exception as error:
        if not weights:
            raise
        where = timm.get_pretrained_cfg(name).hf_hub_id  # type: ignore[union-attr]
        raise UserError(
            f"the weights of {name} could not be loaded ({type(error).__name__}: {error}); get them from the hub's "
            f"{where} and name the folder that holds {name}.safetensors or {name}.pth"
        ) from None


def _weight_file(folder: Path, name: str) -> Path:
    candidates = [
        folder / f"{stem}{suffix}" for stem in (name, name.split(".")[0]) for suffix in (".safetensors", ".pth")
    ]
    for path in candidates:
        if path.is_file():
            read_weights(path)  # timm would read a pickle its own way; this refuses one that wants to run code
            return path
    raise UserError(f"no weights of {name} in {folder}: looked for {', '.join(path.name for path in candidates)}")


def stitch(
    anchors: Sequence[AnchorName | nn.Module],
    pretrained: bool | str | Path = False,
    num_classes: int | None = None,
    **options: Any,
) -> StitchedNetwork:
    """A stitched network of pretrained models, in one call.

    Args:
        anchors: timm names, or models of one's own (which then carry their weights already), fast to slow.
        pretrained: for names: False, True or a folder of weights, see `create_anchor`.
        num_classes: K; None keeps the anchors' own. With another K every head is new and random.
        options: of `SNNet` or `StitchedNetwork`.

    Example:
        >>> network = snnet.stitch(["deit_tiny_patch16_224", "deit_small_patch16_224"], pretrained=True)
        >>> snnet.initialise(network, [hundred_images])
        >>> logits = network.set_stitch(7)(images)
    """
    models = [anchor for anchor in anchors if isinstance(anchor, nn.Module)]
    if models and len(models) != len(anchors):
        raise UserError("give anchors as timm names or as models, not mixed")
    if models:
        network = StitchedNetwork(models, **options)
        if num_classes is not None:
            network.reset_classifier(num_classes)
        return network
    names: Sequence[AnchorName] = anchors  # type: ignore[assignment]
    classes: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    network = SNNet(names, **classes, **options)
    if pretrained:
        in_chans = options.get("in_chans", 3)
        for model, name in zip(network.anchors, names, strict=True):
            loaded = create_anchor(name, pretrained, num_classes=network.num_classes, in_chans=in_chans)
            model.load_state_dict(loaded.state_dict())
    return network
