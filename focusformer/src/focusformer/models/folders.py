"""Supernets and sub-networks in folders of huggingface_hub's layout, and whatever a command is given as `--ckpt`.

SavedSupernet.from_released("supernet-tiny.pth").save_pretrained("folder")
supernet = SavedSupernet.from_pretrained("folder")      # supernet.space: the choices of a search
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from focusformer.method.architecture import Architecture, SearchSpace
from focusformer.method.supernet import Supernet
from focusformer.models.extraction import extract_subnet
from focusformer.models.released import told_space
from focusformer.models.static_vit import StaticViT
from paperkit.errors import UserError
from paperkit.files.hub import CONFIG, SavedInFolder, read_config
from paperkit.files.weights import load_strict, read_weights

CARD = """---
{{ card_data }}
---

# FocusFormer supernet

A weight-sharing supernet of vision transformers (arXiv 2208.10861, 2107.00651); its sub-networks are image classifiers.

Load it with `focusformer.SavedSupernet.from_pretrained(FOLDER)`, cut an architecture out with `focusformer extract`.
What it was trained on, how well its sub-networks do and where they fail are facts of the training run that wrote these
weights: they stand in that run's `metrics.json`, not here.
"""


class SavedSupernet(
    Supernet,
    SavedInFolder,
    library_name="focusformer",
    license="apache-2.0",
    tags=["focusformer", "neural-architecture-search", "image-classification"],
    model_card_template=CARD,
):
    """A supernet that knows its space, in a folder.

    Args:
        space: what `SearchSpace.to_plain` gives. drop_rate, drop_path_rate: as in `Supernet`.
    """

    def __init__(self, space: Mapping[str, Any], drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> None:
        chosen = SearchSpace.from_plain(space)
        super().__init__(chosen.sizes, drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        self.space = chosen

    @classmethod
    def from_released(cls, path: str | Path, trust_pickle: bool = False, space: str | None = None) -> "SavedSupernet":
        """The supernet of a file under the official keys, strictly, in eval mode.

        Args:
            space: name or YAML file; without, by the shapes of the weights.

        Raises:
            UserError: a damaged or foreign file, weights that do not fit the space.
        """
        state = read_weights(path, trust_pickle)
        supernet = cls(told_space(state, str(path), space).to_plain())
        load_strict(supernet, state, str(path))
        return supernet.eval()


def load_model(path: str | Path, trust_pickle: bool = False, space: str | None = None) -> SavedSupernet | StaticViT:
    """A supernet or an extracted sub-network in eval mode, from a run, a folder, or a file under the official keys.

    Args:
        space: of a file, see `SavedSupernet.from_released`.

    Raises:
        UserError: what cannot be read, or does not fit.
    """
    path = Path(path)
    if (path / "model" / CONFIG).is_file():  # of a run
        path = path / "model"
    if not path.is_dir():
        return SavedSupernet.from_released(path, trust_pickle, space)
    several = [] if (path / CONFIG).is_file() else sorted(path.glob(f"*/*/model/{CONFIG}"))
    if several:  # of an embedded experiment
        raise UserError(f"{path} holds {len(several)} supernets; name one, such as {several[0].parent.parent}")
    config = read_config(path)
    if "space" in config:
        return SavedSupernet.from_pretrained(path)
    if "architecture" in config:
        return StaticViT.from_pretrained(path)
    raise UserError(f"{path / CONFIG} names neither the space of a supernet nor the architecture of a sub-network")


def load_supernet(path: str | Path, trust_pickle: bool = False, space: str | None = None) -> SavedSupernet:
    """`load_model`, of a supernet alone.

    Raises:
        UserError: as there, and for a sub-network.
    """
    model = load_model(path, trust_pickle, space)
    if isinstance(model, StaticViT):
        raise UserError(f"{path} is one sub-network ({model.architecture}), and a supernet is wanted")
    return model


def load_subnet(
    path: str | Path, architecture: Architecture | None = None, trust_pickle: bool = False, space: str | None = None
) -> StaticViT:
    """A sub-network in eval mode: one that was extracted, or an architecture cut out of a supernet here.

    Args:
        architecture: of a supernet; an extracted one has its own.

    Raises:
        UserError: as `load_model`; a supernet without an architecture, or a sub-network with another one.
    """
    model = load_model(path, trust_pickle, space)
    if isinstance(model, StaticViT):
        if architecture not in (None, model.architecture):
            raise UserError(f"{path} is the sub-network {model.architecture}, not {architecture}")
        return model
    if architecture is None:
        raise UserError(
            f"{path} is a supernet: name an architecture with --architecture, such as {model.space.smallest()}"
        )
    return extract_subnet(model, architecture)
