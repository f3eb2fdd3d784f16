"""Turn an authors' checkpoint into a folder for `from_pretrained`, or such a folder into the authors' key scheme."""

from typing import Any

SPLIT_NORMS = "split_norms.safetensors"


def add_arguments(parser: Any) -> None:
    parser.add_argument("source", type=str, help="authors' checkpoint (.pth), or a folder that this command wrote")
    parser.add_argument("target", type=str, help="folder to write, or a .pth or .safetensors file to write")
    parser.add_argument("--released", type=str | None, default=None, help="which released SN-Net the checkpoint is of")
    parser.add_argument("--part", type=str | None, default=None, help="which of several state dicts in the checkpoint")
    parser.add_argument("--trust-pickle", action="store_true", help="read weights whose file may run code")


def run(arguments: Any) -> int:
    from pathlib import Path

    from paperkit.errors import UserError
    from snnet.models.released_networks import RELEASED

    source, target = Path(arguments.source), Path(arguments.target)
    if source.is_dir():
        return _to_official(source, target)
    name = arguments.released or next((n for n, r in RELEASED.items() if r.file == source.name), None)
    if name is None:
        raise UserError(f"say with --released which SN-Net {source.name} is of: {', '.join(RELEASED)}")
    return _from_official(source, target, name, arguments)


def _from_official(source: Any, target: Any, name: str, arguments: Any) -> int:
    from paperkit.files.hub import replaced_folder
    from paperkit.files.weights import save_weights
    from snnet.models.anchors import SNNet
    from snnet.models.official import read_official
    from snnet.models.released_networks import build

    network = build(name)
    aside = read_official(network, source, arguments.trust_pickle, arguments.part)
    assert isinstance(network, SNNet)
    note = ""
    with replaced_folder(target) as temporary:
        network.save_pretrained(temporary)
        (temporary / SPLIT_NORMS).unlink(missing_ok=True)  # of another checkpoint
        if aside.split_norms:
            save_weights(temporary / SPLIT_NORMS, aside.split_norms)
    if aside.split_norms:
        note = f"; {len(aside.split_norms)} tensors of split BatchNorm (training only) in {SPLIT_NORMS}"
    print(f"{target}: {network.num_configurations} configurations of {name}{note}")
    return 0


def _to_official(source: Any, target: Any) -> int:
    from paperkit.errors import UserError
    from paperkit.files.weights import read_weights, save_checkpoint, save_weights
    from snnet.models.anchors import load_folder
    from snnet.models.official import Aside, official_buffers, to_official

    if not (source / "config.json").is_file():
        raise UserError(f"{source} has no config.json; give a folder that `snnet convert` or save_pretrained wrote")
    network, _ = load_folder(source)
    kept = source / SPLIT_NORMS
    aside = Aside(read_weights(kept, advice=None), tuple(official_buffers(network))) if kept.exists() else None
    state = to_official(network, aside)
    if target.suffix == ".safetensors":
        save_weights(target, state)
    elif target.suffix == ".pth":
        save_checkpoint(target, {"model": state})
    else:
        raise UserError(f"{target}: give the file a name that ends in .pth or .safetensors")
    print(f"{target}: {len(state)} tensors under the authors' keys")
    return 0
