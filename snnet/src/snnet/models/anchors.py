"""Anchors by timm name, and the SN-Net built from names, which a config, a folder or the hub can describe."""

import json
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
CLASSES = "classes.json"
"""Names of a run's classes, by number."""
MOST_ANCHORS = 64
DEEPEST = 1000
"""Blocks of an anchor; timm's deepest has some hundred."""
DEPTHS = ("depth", "depths", "layers")
OF_THE_NETWORK = ("num_classes", "in_chans")
OF_THE_WEIGHTS = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


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
        check_anchor_options(anchors)
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


def check_anchor_options(anchors: Sequence[AnchorName]) -> None:
    """Refuse what one anchor alone cannot decide, and what no machine could build in minutes.

    Raises:
        UserError: naming the option.
    """
    if len(anchors) > MOST_ANCHORS:
        raise UserError(f"{len(anchors)} anchors are more than {MOST_ANCHORS}")
    for anchor in anchors:
        if isinstance(anchor, str):
            continue
        for option, value in anchor.items():
            said = f"the anchor {anchor.get('name')} has {option} {value}"
            numbers = value if isinstance(value, list | tuple) else [value]
            if option in OF_THE_NETWORK:
                raise UserError(f"{said}, which all anchors share")
            if option in OF_THE_WEIGHTS:
                raise UserError(f"{said}; weights are named apart from the anchors")
            if option in DEPTHS and any(isinstance(n, int | float) and n > DEEPEST for n in numbers):
                raise UserError(f"{said}; {DEEPEST} blocks are the most")


def load_folder(folder: Path) -> tuple[SNNet, dict[str, Any]]:
    """A network that `save_pretrained` wrote, in eval mode, and the arguments of `SNNet` that built it.

    Raises:
        UserError: if a file is missing or damaged, or the weights do not fit.
    """
    description = read_config(folder)
    return SNNet.from_pretrained(folder), description


def saved_classes(folder: Path | None) -> list[str] | None:
    """The names of a network's classes, which a run keeps beside its networks; None where there are none.

    Args:
        folder: of a run, or a folder of a network in it.

    Raises:
        UserError: if the file holds no list of names.
    """
    for place in () if folder is None else (folder, folder.absolute().parent):
        path = place / CLASSES
        if not path.is_file() or (place != folder and not (place / "started").is_file()):
            continue
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path} holds no list of names")
        return names
    return None


def read_anchors(
    anchors: Sequence[AnchorName],
    num_classes: int,
    weights: str | Path | None = None,
    trust_pickle: bool = False,
    part: str | None = None,
) -> tuple[SNNet, dict[str, Any]]:
    """A network of named anchors with the weights of a file (None: random ones), and the arguments that built it.

    Args:
        part: which state dict of a file that holds several.
    """
    description: dict[str, Any] = {"anchors": list(anchors), "num_classes": num_classes}
    network = SNNet(**description)
    if weights is not None:
        load_strict(network, read_weights(weights, trust_pickle, part=part, part_advice="--part"), str(weights))
    return network, description


def input_size_of(network: SNNet) -> tuple[int, int, int]:
    """(channels, H, W) that the last anchor was made for; its default where it takes any size."""
    _, height, width = resolve_model_data_config(network.anchors[-1])["input_size"]
    channels = next(module.in_channels for module in network.anchors[-1].modules() if isinstance(module, nn.Conv2d))
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
            # timm would read a pickle its own way; this refuses one that wants to run code
            read_weights(path, advice=None)
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
