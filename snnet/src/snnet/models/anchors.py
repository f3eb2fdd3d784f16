"""Anchors by timm name, and the SN-Net built from names, which a config, a folder or the hub can describe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.hub import SavedInFolder, read_config
from paperkit.files.weights import load_strict, read_weights
from snnet.method.enumeration import LayerAssignment
from snnet.method.stitching import StitchedNetwork

AnchorName = str | Mapping[str, Any]
"""A timm model name, or {"name": ..., further arguments of timm.create_model}."""


class SNNet(StitchedNetwork, SavedInFolder, library_name="snnet", tags=["snnet", "image-classification"]):
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
        self.anchor_names = [anchor if isinstance(anchor, str) else str(anchor.get("name")) for anchor in anchors]
        super().__init__(
            [create_anchor(anchor, num_classes=num_classes, in_chans=in_chans) for anchor in anchors],
            nearest=nearest,
            window=window,
            stride=stride,
            stitched_final_norm=stitched_final_norm,
            layer_assignment=layer_assignment,
            any_order=any_order,
        )

    def weights_to_save(self) -> dict[str, Tensor]:
        """The state dict without the second statistics of split BatchNorm, which only training uses."""
        return {key: value for key, value in self.state_dict().items() if ".aux_bn." not in key}


def load_folder(folder: Path) -> tuple[SNNet, dict[str, Any]]:
    """A network that `save_pretrained` wrote, in eval mode, and the arguments of `SNNet` that built it.

    Raises:
        UserError: if a file is missing or damaged, or the weights do not fit.
    """
    description = read_config(folder)
    return SNNet.from_pretrained(folder), description


def read_anchors(
    anchors: Sequence[AnchorName], num_classes: int, weights: str | Path | None = None, trust_pickle: bool = False
) -> tuple[SNNet, dict[str, Any]]:
    """A network of named anchors with the weights of a file (None: random ones), and the arguments that built it."""
    description: dict[str, Any] = {"anchors": list(anchors), "num_classes": num_classes}
    network = SNNet(**description)
    if weights is not None:
        load_strict(network, read_weights(weights, trust_pickle), str(weights))
    return network, description


def input_size_of(network: SNNet) -> tuple[int, int, int]:
    """(channels, H, W) that the last anchor was made for; its default where it takes any size."""
    channels, height, width = resolve_model_data_config(network.anchors[-1])["input_size"]
    fixed = network.families[-1].grid(network.anchors[-1]).image
    return (channels, *(fixed or (height, width)))


def create_anchor(anchor: AnchorName, weights: str | Path | bool = False, **options: Any) -> nn.Module:
    """One timm model.

    Args:
        weights: False for random weights; True for timm's own, from its cache or the hub; a folder that holds
            `<name>.safetensors` or `<name>.pth`, as timm or the authors of the anchor save it.
        options: further arguments of `timm.create_model`; those of the anchor itself come after them.

    Raises:
        UserError: if timm knows no such model, the options do not fit it, or the weights are not to be had.
    """
    given = {"name": anchor} if isinstance(anchor, str) else dict(anchor)
    if "name" not in given:
        raise UserError(f"the anchor {given} has no name")
    name = str(given.pop("name"))
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
