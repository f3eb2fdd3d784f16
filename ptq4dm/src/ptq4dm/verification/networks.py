"""Whole U-Nets of the authors, recomputed by the networks of diffusers that users run."""

import json

import torch
from torch import Tensor

from paperkit.errors import UserError
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Check
from ptq4dm.models.compvis import load_official, unet_names
from ptq4dm.models.latent_diffusion import UNet, UNetOptions, build_unet

UNET_OPTIONS = ("official", "diffusers", "norm_num_groups")


def official_unet(file: ReferenceFile) -> UNet:
    """The network of a file's official options, without its weights."""
    official = file.config["official"]
    if not isinstance(official, dict):
        raise UserError("config.official is no set of options")
    return build_unet(UNetOptions.of_official(official, file.config.get("norm_num_groups", 32))).eval()


@torch.no_grad()
def unet(file: ReferenceFile) -> dict[str, Tensor | Check]:
    """The noise prediction, and the key map where the file tells one."""
    network = official_unet(file)
    names = unet_names(network)
    load_official(network, file.state, names, "sd.*")
    inputs = [file.inputs["x"], file.inputs["t"]]
    inputs += [file.inputs["context"]] if "context" in file.inputs else []
    computed: dict[str, Tensor | Check] = {"out.y": network(*inputs, return_dict=False)[0]}
    if "key_map" in file.metadata:
        told = json.loads(file.metadata["key_map"])
        ours = {key: list(parts) if len(parts) > 1 else parts[0] for key, parts in names.items()}
        wrong = [key for key in {*told, *ours} if told.get(key) != ours.get(key)]
        computed["key_map"] = Check(len(wrong), 0, f"of {len(ours)} keys")
    return computed
