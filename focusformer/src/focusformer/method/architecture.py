"""Architectures and the spaces that they are chosen from (AutoFormer, Chen et al., ICCV 2021, section 3).

Letters: e embedding width, d depth, h heads of a layer, r MLP ratio of a layer; D the width of the supernet.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from paperkit.errors import UserError
from paperkit.files.settings import read_settings

Flat = tuple[float, ...]
MOST_LAYERS = 1000
"""A space file cannot ask for a deeper supernet: nothing of its size is built before that is known."""
LARGEST = 2**20
"""No width, count or image side is above it: a hostile number ends here and not in an allocation."""
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Architecture:
    """One sub-network: the widths of its first d layers. Written `192/3,3,4/3.5,4,4`: e, heads, ratios.

    Args:
        embed: e, one for the whole network, since the residual stream keeps its width.
        heads: h of each layer; its length is d.
        ratios: r of each layer, as many as heads.

    Raises:
        UserError: no layer, lists of two lengths, or a number that is not positive.
    """

    embed: int
    heads: tuple[int, ...]
    ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.heads) != len(self.ratios) or not self.heads:
            raise UserError(f"an architecture has as many ratios as heads, one a layer; got {self}")
        if not all(_whole(value) and value > 0 for value in (self.embed, *self.heads)):
            raise UserError(f"embedding width and heads are positive whole numbers; got {self}")
        if max(self.embed, *self.heads) > LARGEST:
            raise UserError(f"embedding width and heads are at most {LARGEST:,}; got a larger number")
        if not all(_number(value) and 0 < value < math.inf for value in self.ratios):
            raise UserError(f"MLP ratios are positive numbers; got {self}")

    @property
    def depth(self) -> int:
        """d."""
        return len(self.heads)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Hidden widths of the MLPs, int(e r): the official code truncates."""
        return tuple(int(self.embed * ratio) for ratio in self.ratios)

    def __str__(self) -> str:
        return f"{self.embed}/{','.join(map(str, self.heads))}/{','.join(f'{ratio:g}' for ratio in self.ratios)}"

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """Reads what `str` writes.

        Raises:
            UserError: another form.
        """
        try:
            embed, heads, ratios = text.strip().split("/")
            return cls(int(embed), tuple(map(int, heads.split(","))), tuple(map(float, ratios.split(","))))
        except ValueError:
            raise UserError(
                f"{text[:60]!r} is no architecture: need WIDTH/HEADS/RATIOS, one a layer, such as 192/3,3,4/3.5,4,4"
            ) from None

    def to_official(self) -> dict[str, Any]:
        """AutoFormer's dictionary: layer_num, embed_dim, num_heads, mlp_ratio."""
        return {
            "layer_num": self.depth,
            "embed_dim": [self.embed] * self.depth,
            "num_heads": list(self.heads),
            "mlp_ratio": list(self.ratios),
        }

    @classmethod
    def from_official(cls, config: Mapping[str, Any]) -> "Architecture":
        """From AutoFormer's dictionary; lists longer than layer_num count up to it.

        Raises:
            UserError: a key is missing or of another type, too short, or the width changes between layers.
        """
        try:
            depth = config["layer_num"]
            if isinstance(depth, bool) or not isinstance(depth, int):
                raise TypeError("layer_num is no whole number")
            embed, heads, ratios = (list(config[key])[:depth] for key in ("embed_dim", "num_heads", "mlp_ratio"))
            widths = set(embed)
        except (KeyError, TypeError) as error:
            raise UserError(f"an architecture needs layer_num, embed_dim, num_heads and mlp_ratio ({error})") from None
        if not depth or {len(embed), len(heads), len(ratios)} != {depth} or len(widths) != 1:
            raise UserError(f"need embed_dim (one width), num_heads and mlp_ratio for {depth} layers; got {config}")
        return cls(embed[0], tuple(heads), tuple(ratios))

    def to_flat(self) -> Flat:
        """The tuple of the search: (d, r_0.., h_0.., e), 2 d + 2 numbers."""
        return (self.depth, *self.ratios, *self.heads, self.embed)

    @classmethod
    def from_flat(cls, flat: Sequence[float]) -> "Architecture":
        """From the tuple of the search.

        Raises:
            UserError: its length is not 2 d + 2.
        """
        depth = int(flat[0]) if flat else 0
        if len(flat) != 2 * depth + 2:
            raise UserError(f"{len(flat)} numbers are no (d, ratios, heads, e) of {depth} layers")
        ratios, heads = flat[1 : depth + 1], flat[depth + 1 : -1]
        return cls(int(flat[-1]), tuple(map(int, heads)), tuple(map(float, ratios)))


@dataclass(frozen=True)
class SuperSizes:
    """What the supernet stores, the largest of every choice, and the options that all its sub-networks share.

    Args:
        embed, depth, heads, ratio: D, and the super depth, heads and MLP ratio.
        head_dim: width of a head, 64 throughout the paper.
        img_size, patch_size, in_chans, num_classes: of the images.
        relative_position, max_relative_position: 2-D relative position on keys and values, clipped at M.
        abs_pos: absolute position embedding.
        change_qkv: q = head_dim h; without it q stays D for every h.
        qkv_bias, qkv_bias_layout: the released bias is sliced contiguously though its weight is interleaved.
        gp: mean of the patch tokens; without it the class token.
        scale: rescales the outputs of narrower attention and MLPs.
        pre_norm: norms before attention and MLP; without it behind the sum, and no final norm.

    Raises:
        UserError: sizes that cannot be.
    """

    embed: int
    depth: int
    heads: int
    ratio: float
    head_dim: int = 64
    img_size: int = 224
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    relative_position: bool = True
    max_relative_position: int = 14
    abs_pos: bool = True
    change_qkv: bool = True
    qkv_bias: bool = True
    qkv_bias_layout: Literal["contiguous", "interleaved"] = "contiguous"
    gp: bool = True
    scale: bool = False
    pre_norm: bool = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is bool and not isinstance(value, bool):
                raise UserError(f"{field.name} is true or false; got {value!r}")
            if field.type is int and not (_whole(value) and value > 0):
                raise UserError(f"{field.name} is a positive whole number; got {value!r}")
            if field.type is int and value > LARGEST and field.name != "depth":
                raise UserError(f"{field.name} is at most {LARGEST:,}; got {value!r}")
        if self.depth > MOST_LAYERS:
            raise UserError(f"depth {self.depth} is above {MOST_LAYERS} layers")
        if not (_number(self.ratio) and 0 < self.ratio < math.inf):
            raise UserError(f"ratio is a positive number; got {self.ratio!r}")
        if self.qkv_bias_layout not in ("contiguous", "interleaved"):
            raise UserError(f"qkv_bias_layout {self.qkv_bias_layout!r} does not exist; known: contiguous, interleaved")
        if self.img_size % self.patch_size:
            raise UserError(f"img_size {self.img_size} is no multiple of patch_size {self.patch_size}")
        if self.change_qkv and self.head_dim * self.heads > self.embed:
            raise UserError(f"{self.heads} heads of {self.head_dim} do not fit into the width {self.embed}")
        if not self.change_qkv and self.embed % self.heads:
            raise UserError(f"width {self.embed} is no multiple of {self.heads} heads, as change_qkv=false needs")

    @property
    def grid(self) -> int:
        """Patches along a side of the image."""
        return self.img_size // self.patch_size

    @property
    def patches(self) -> int:
        """P, the class token not counted."""
        return self.grid**2

    @property
    def patch_values(self) -> int:
        """Numbers of a patch: channels times its area."""
        return self.in_chans * self.patch_size**2

    @property
    def table_width(self) -> int:
        """Stored width of the tables of relative position, D // super heads; a layer uses the width of its heads."""
        return self.embed // self.heads

    def q(self, heads: int) -> int:
        """Width of queries, keys and values of a layer with h heads."""
        return self.head_dim * heads if self.change_qkv else self.embed

    def check(self, architecture: Architecture) -> None:
        """Passes for every architecture up to the super sizes, whether a space lists its widths or not.

        Raises:
            UserError: one that is larger, or heads that do not divide the width.
        """
        a = architecture
        for name, value, most in (
            ("embedding width", a.embed, self.embed),
            ("depth", a.depth, self.depth),
            ("heads", max(a.heads), self.heads),
            ("MLP ratio", max(a.ratios), self.ratio),
        ):
            if value > most:
                raise UserError(f"{name} {value:g} is above the supernet's {most:g} (architecture {a})")
        if min(a.hidden) < 1:
            raise UserError(f"MLP ratio {min(a.ratios):g} leaves no hidden unit of width {a.embed} (architecture {a})")
        if not self.change_qkv:
            for heads in a.heads:
                if self.embed % heads:
                    raise UserError(f"{heads} heads do not divide the width {self.embed} (architecture {a})")
                if self.relative_position and self.embed // heads > self.table_width:
                    wide = f"heads of width {self.embed // heads} exceed relative tables of {self.table_width}"
                    raise UserError(f"{wide} (architecture {a})")

    @property
    def largest(self) -> Architecture:
        """The whole supernet."""
        return Architecture(self.embed, (self.heads,) * self.depth, (self.ratio,) * self.depth)


@dataclass(frozen=True)
class SearchSpace:
    """The choices of a search, each in ascending order, and the supernet that holds them.

    Args:
        sizes: of the supernet. embed, depth, heads, ratios: the choices of e, d, h and r.

    Raises:
        UserError: an empty, doubled or impossible choice, or one above the super sizes.
    """

    sizes: SuperSizes
    embed: tuple[int, ...]
    depth: tuple[int, ...]
    heads: tuple[int, ...]
    ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("embed", "depth", "heads", "ratios"):
            choices = getattr(self, name)
            valid = _number if name == "ratios" else _whole
            if not choices or not all(valid(value) and 0 < value < math.inf for value in choices):
                kind = "numbers" if name == "ratios" else "whole numbers"
                raise UserError(f"the choices of {name} are positive {kind}; got {list(choices)}")
            if len(set(choices)) < len(choices):
                raise UserError(f"the choices of {name} hold a value twice: {list(choices)}")
            object.__setattr__(self, name, tuple(sorted(choices)))
        if max(self.depth) > self.sizes.depth:
            raise UserError(f"depth {max(self.depth)} is above the supernet's {self.sizes.depth}")
        for heads in self.heads:
            self.sizes.check(Architecture(max(self.embed), (heads,), (max(self.ratios),)))
        self.sizes.check(self.smallest())

    @classmethod
    def from_yaml(cls, path: str) -> "SearchSpace":
        """A space in AutoFormer's layout: SUPERNET and SEARCH_SPACE with EMBED_DIM, DEPTH, NUM_HEADS and MLP_RATIO;
        SUPERNET may also set any further field of `SuperSizes`, such as `img_size`.

        Raises:
            UserError: unreadable, an unknown or missing key, or choices that cannot be.
        """
        settings = read_settings(path, "space")
        try:
            return cls.from_plain(settings)
        except UserError as error:
            raise UserError(f"space {path}: {error}") from None

    @classmethod
    def from_plain(cls, settings: Mapping[str, Any]) -> "SearchSpace":
        """From the mapping that `to_plain` gives."""
        sizes = _section(settings, "SUPERNET", _SUPER, [field.name for field in dataclasses.fields(SuperSizes)])
        choices = _section(settings, "SEARCH_SPACE", _CHOICES, [])
        for name, values in choices.items():
            if not isinstance(values, list | tuple):
                raise UserError(f"the choices of {name} are a list; got {values!r}")
        return cls(SuperSizes(**sizes), **{name: tuple(values) for name, values in choices.items()})

    def to_plain(self) -> dict[str, Any]:
        """Plain values in the layout of `from_yaml`."""
        sizes = dataclasses.asdict(self.sizes)
        return {
            "SUPERNET": {key: sizes.pop(name) for key, name in _SUPER.items()} | sizes,
            "SEARCH_SPACE": {key: list(getattr(self, name)) for key, name in _CHOICES.items()},
        }

    def size(self) -> int:
        """How many architectures: |e| sum_d (|h| |r|)^d."""
        return len(self.embed) * sum((len(self.heads) * len(self.ratios)) ** depth for depth in self.depth)

    def smallest(self) -> Architecture:
        """The least of every choice."""
        depth = min(self.depth)
        return Architecture(min(self.embed), (min(self.heads),) * depth, (min(self.ratios),) * depth)

    def middle(self) -> Architecture:
        """The middle of every choice, the lower one of two."""
        depth = _middle(self.depth)
        return Architecture(_middle(self.embed), (_middle(self.heads),) * depth, (_middle(self.ratios),) * depth)

    def largest(self) -> Architecture:
        """The most of every choice; the supernet may be wider."""
        depth = max(self.depth)
        return Architecture(max(self.embed), (max(self.heads),) * depth, (max(self.ratios),) * depth)

    def sample_uniform(self, rng: random.Random) -> Architecture:
        """Independent uniform choices, in the official order of draws: depth, ratios, heads, width."""
        depth = rng.choice(self.depth)
        ratios = tuple(rng.choice(self.ratios) for _ in range(depth))
        heads = tuple(rng.choice(self.heads) for _ in range(depth))
        return Architecture(rng.choice(self.embed), heads, ratios)

    def holds(self, architecture: Architecture) -> bool:
        """Whether each width of an architecture is one of the choices."""
        return (
            architecture.embed in self.embed
            and architecture.depth in self.depth
            and set(architecture.heads) <= set(self.heads)
            and set(architecture.ratios) <= set(self.ratios)
        )

    def __iter__(self) -> Iterator[Architecture]:
        """All architectures: for spaces that are small enough."""
        for embed, depth in itertools.product(self.embed, self.depth):
            layers = list(itertools.product(self.heads, self.ratios))
            for chosen in itertools.product(layers, repeat=depth):
                yield Architecture(embed, tuple(h for h, _ in chosen), tuple(r for _, r in chosen))


def _middle(choices: tuple[Number, ...]) -> Number:
    return choices[(len(choices) - 1) // 2]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return _whole(value) or isinstance(value, float)


_SUPER = {"EMBED_DIM": "embed", "DEPTH": "depth", "NUM_HEADS": "heads", "MLP_RATIO": "ratio"}
_CHOICES = {"EMBED_DIM": "embed", "DEPTH": "depth", "NUM_HEADS": "heads", "MLP_RATIO": "ratios"}


def _section(
    settings: Mapping[str, Any], title: str, names: Mapping[str, str], further: Iterable[str]
) -> dict[str, Any]:
    """A section of a space file with our names in place of the official keys."""
    section = settings.get(title)
    if not isinstance(section, Mapping):
        raise UserError(f"has no section {title}")
    known = [*names, *(name for name in further if name not in names.values())]
    if unknown := [str(key) for key in section if key not in known]:
        raise UserError(f"unknown key {unknown[0]!r} in {title}; known: {', '.join(known)}")
    if missing := [key for key in names if key not in section]:
        raise UserError(f"{title} lacks {missing[0]}")
    return {names.get(key, key): value for key, value in section.items()}


SPACES = {
    "ti": SearchSpace(SuperSizes(256, 14, 4, 4.0), (192, 216, 240), (12, 13, 14), (3, 4), (3.5, 4.0)),
    "s": SearchSpace(SuperSizes(448, 14, 7, 4.0), (320, 384, 448), (12, 13, 14), (5, 6, 7), (3.0, 3.5, 4.0)),
    "b": SearchSpace(SuperSizes(640, 16, 10, 4.0), (528, 576, 624), (14, 15, 16), (9, 10), (3.0, 3.5, 4.0)),
    "digits": SearchSpace(
        SuperSizes(48, 3, 4, 4.0, head_dim=8, img_size=8, patch_size=2, in_chans=1, num_classes=10,
                   max_relative_position=3),
        (16, 24, 32, 48), (1, 2, 3), (1, 2, 4), (0.5, 1.0, 2.0, 4.0),
    ),
}  # fmt: skip
"""AutoFormer's three spaces, and that of the embedded experiment."""

AUTOFORMER = {
    "ti": Architecture(
        192, (3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3),
        (3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5),
    ),
    "s": Architecture(
        384, (6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7),
        (3.0, 3.5, 3.0, 3.5, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.5, 4.0),
    ),
    "b": Architecture(
        576, (9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10),
        (3.5, 3.5, 4.0, 3.5, 4.0, 3.5, 3.5, 3.0, 4.0, 4.0, 3.0, 4.0, 3.0, 3.5),
    ),
}  # fmt: skip
"""The architectures of AutoFormer-T, S and B. The ratio 3 of T is no choice of its released space."""
