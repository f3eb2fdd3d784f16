"""Convert between weight files and folders.

From: a checkpoint of AFSD (.ckpt), a run of `stpt train` or a checkpoint inside of one, a converted file, a folder of
save_pretrained. To, by the target's ending: .safetensors (with the network's settings inside), .ckpt (a bare state dict
by AFSD's names), or a folder of save_pretrained (stpt.STPT.from_pretrained).

With --mvit NAME the source is torchvision's mvit_v1_b (a file of Kinetics weights), and the target a backbone of that
name for `model.pretrained` of a config: what was loaded, skipped and left fresh is printed.
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("source", type=str, help="file, folder or run to read")
    parser.add_argument("target", type=str, help="file or folder to write")
    parser.add_argument("--mvit", type=str | None, default=None, help="backbone to fill from MViT: stpt, ...")
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that can run code")


def run(arguments: Any) -> int:
    from pathlib import Path

    from paperkit.errors import UserError
    from paperkit.files.weights import save_weights
    from stpt.models.conversion import load_backbone, load_network, save_network
    from stpt.models.networks import create_backbone

    source, target = Path(arguments.source), Path(arguments.target)
    if arguments.mvit is None:
        print(save_network(load_network(source, trust_pickle=arguments.trust_pickle), target))
        return 0
    if target.suffix != ".safetensors":
        raise UserError(f"{target} must end in .safetensors")
    backbone = create_backbone(arguments.mvit)
    load_backbone(backbone, source, trust_pickle=arguments.trust_pickle)
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    save_weights(target, state, {"format": "pt"})
    print(f"{target}: backbone of {len(state)} tensors, for model.pretrained of a config")
    return 0
