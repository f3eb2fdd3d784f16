"""AutoFormer's released supernets: supernet-tiny.pth, supernet-small.pth, supernet-base.pth, and files like them.

Our supernet has the official keys, so they load strictly and go back tensor by tensor. What a file does not say (the
layout of the qkv bias, the pooling, `scale`, `change_qkv`) is as released unless a space file says otherwise.

What the three files are is not known: users found that the largest Ti architecture reaches 67.2 % with
supernet-tiny.pth and 76.3 % in a supernet of their own. They are good for the named architectures (AutoFormer-T, S and
B), and no stand-in for a uniformly trained supernet.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from focusformer.method.architecture import AUTOFORMER, SPACES, Architecture, SearchSpace, SuperSizes
from focusformer.method.supernet import Supernet
from focusformer.models.names import ALSO, FILES
from paperkit.errors import UserError
from paperkit.files.bounded import read_json
from paperkit.files.keys import load_strict


def named_architecture(name: str) -> Architecture | None:
    """AutoFormer-T, S or B, in the paper's words or in timm's; None for any other."""
    name = ALSO.get(name.lower(), name)
    return AUTOFORMER[FILES[name][1]] if name in FILES else None


def read_architecture(text: str) -> Architecture:
    """An architecture from a name, a JSON file in AutoFormer's form, or the one-line text.

    Raises:
        UserError: none of the three.
    """
    if named := named_architecture(text):
        return named
    if not text.endswith(".json"):
        try:
            return Architecture.parse(text)
        except UserError as error:
            raise UserError(f"{error}; or AutoFormer-T, -S or -B, or a .json file in AutoFormer's form") from None
    content = read_json(text, "architecture")
    if isinstance(content, str):
        return Architecture.parse(content)
    if not isinstance(content, Mapping):
        raise UserError(f"{text} holds a {type(content).__name__}, not layer_num, embed_dim, num_heads and mlp_ratio")
    try:
        return Architecture.from_official(content)
    except UserError as error:
        raise UserError(f"{text}: {error}") from None


def released_file(name: str) -> Path:
    """Where the released file of a named network is looked for.

    Raises:
        UserError: it is not there; with its name and the place.
    """
    file = FILES[ALSO.get(name.lower(), name)][0]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        raise UserError(
            f"the released weights {file} cannot be downloaded from here; put the file at {path} (release v1.0 of "
            "silent-chen/AutoFormer-model-zoo), or name another place"
        )
    return path


def is_supernet(state: Mapping[str, Tensor]) -> bool:
    """Whether keys are those of a supernet."""
    return "patch_embed_super.proj.weight" in state


def told_sizes(state: Mapping[str, Tensor], source: str) -> SuperSizes:
    """The sizes of a supernet, from the shapes of its weights: M from its tables, the image from its positions.

    Raises:
        UserError: keys or shapes of something else.
    """
    if not is_supernet(state):
        raise UserError(f"{source} holds no supernet: no patch_embed_super.proj.weight among {len(state)} keys")
    try:
        embed, in_chans, patch_size, _ = state["patch_embed_super.proj.weight"].shape
        depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
        table = state.get("blocks.0.attn.rel_pos_embed_k.embeddings_table_v")
        positions = state.get("pos_embed")
        head_dim = min(64, embed) if table is None else table.shape[1]
        grid = 14 if positions is None else math.isqrt(positions.shape[1] - 1)
        return SuperSizes(
            embed=embed, depth=depth, heads=embed // head_dim, ratio=state["blocks.0.fc1.weight"].shape[0] / embed,
            head_dim=head_dim, img_size=grid * patch_size, patch_size=patch_size, in_chans=in_chans,
            num_classes=state["head.weight"].shape[0], relative_position=table is not None,
            max_relative_position=14 if table is None else table.shape[0] // 2 - 1, abs_pos=positions is not None,
            qkv_bias="blocks.0.attn.qkv.bias" in state, pre_norm="norm.weight" in state,
        )  # fmt: skip
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{source} does not hold a whole supernet: {type(error).__name__} {error}") from None
    except UserError as error:
        raise UserError(f"{source} holds a supernet of impossible sizes: {error}") from None


def told_space(state: Mapping[str, Tensor], source: str, space: str | None = None) -> SearchSpace:
    """The space of a supernet's weights: what `space` names, else the published one of that size.

    A supernet of no published size has one choice of everything, its own largest; a space file gives it more.

    Args:
        space: ti, s, b, digits, or a YAML file in AutoFormer's layout.

    Raises:
        UserError: as `told_sizes`, or a space that does not exist.
    """
    if space is not None:
        return read_space(space)
    sizes = told_sizes(state, source)
    for known in SPACES.values():
        if all(
            getattr(sizes, name) == getattr(known.sizes, name) for name in ("embed", "depth", "ratio", "table_width")
        ):
            # heads may be fewer than fit into the width, and narrower than the tables
            own = dataclasses.replace(sizes, heads=known.sizes.heads, head_dim=known.sizes.head_dim)
            return dataclasses.replace(known, sizes=own)
    return SearchSpace(sizes, (sizes.embed,), (sizes.depth,), (sizes.heads,), (sizes.ratio,))


def read_space(space: str) -> SearchSpace:
    """A published space by its name, or that of a YAML file.

    Raises:
        UserError: neither.
    """
    if space in SPACES:
        return SPACES[space]
    if not Path(space).is_file():
        raise UserError(f"no space '{space}': neither {', '.join(SPACES)} nor a YAML file")
    return SearchSpace.from_yaml(space)


def start_from(supernet: Supernet, state: Mapping[str, Tensor], source: str) -> list[str]:
    """Begins a supernet for other images with weights: positions are resized, a classifier of other classes stays new.

    Everything else must fit.

    Returns:
        The keys that were resized or left new.

    Raises:
        UserError: with the keys that do not fit.
    """
    state, own, changed = dict(state), supernet.state_dict(), list[str]()
    if "pos_embed" in state and "pos_embed" in own and state["pos_embed"].shape[1] != own["pos_embed"].shape[1]:
        state["pos_embed"] = resized_positions(state["pos_embed"], own["pos_embed"].shape[1] - 1)
        changed.append("pos_embed")
    for key in ("head.weight", "head.bias"):
        if key in state and len(state[key]) != len(own[key]):
            state[key] = own[key]
            changed.append(key)
    load_strict(supernet, state, source)
    return changed


def resized_positions(positions: Tensor, patches: int) -> Tensor:
    """Positions (1, P + 1, D) for another number of patches: bicubic over the grid, the class token's as it is.

    Raises:
        UserError: a grid that is not square.
    """
    old, new = math.isqrt(positions.shape[1] - 1), math.isqrt(patches)
    if old**2 != positions.shape[1] - 1 or new**2 != patches:
        raise UserError(f"positions of {positions.shape[1] - 1} patches for {patches}: both grids must be square")
    grid = positions[:, 1:].mT.unflatten(2, (old, old))
    grid = interpolate(grid.float(), size=(new, new), mode="bicubic", align_corners=False).to(positions.dtype)
    return torch.cat([positions[:, :1], grid.flatten(2).mT], 1)
