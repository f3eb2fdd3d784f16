"""AutoFormer's checkpoint files to folders of `save_pretrained`, and back, tensor by tensor."""

from pathlib import Path

from focusformer.models.folders import SavedSupernet, load_supernet
from paperkit.errors import UserError
from paperkit.files.weights import save_checkpoint, save_weights


def to_folder(source: Path, target: Path, trust_pickle: bool = False, space: str | None = None) -> str:
    """Writes a folder from a file under the official keys; returns a line that says what is in it.

    Args:
        space: name or YAML file; without, by the shapes of the weights.

    Raises:
        UserError: a damaged or foreign file, or weights that do not fit the space.
    """
    supernet = SavedSupernet.from_released(source, trust_pickle, space)
    supernet.save_pretrained(target)
    sizes, count = supernet.sizes, sum(parameter.numel() for parameter in supernet.parameters())
    return (
        f"{target}: supernet of width {sizes.embed} and {sizes.depth} layers, {sizes.img_size} px, "
        f"{sizes.num_classes} classes, {count:,} parameters, {supernet.space.size():,} architectures to search"
    )


def to_file(source: Path, target: Path) -> str:
    """Writes a file under the official keys from a folder; returns a line that says what is in it.

    Raises:
        UserError: a folder of something else, or another suffix.
    """
    if target.suffix not in (".pth", ".pt", ".safetensors"):
        raise UserError(f"{target} must end in .pth, .pt or .safetensors")
    state = load_supernet(source).state_dict()
    if target.suffix == ".safetensors":
        save_weights(target, state, {"format": "pt"})
    else:
        save_checkpoint(target, {"model": state})
    return f"{target}: {len(state)} tensors under AutoFormer's keys"
