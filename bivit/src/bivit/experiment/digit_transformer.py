"""The small vision transformer of the experiment, its students by name, and what they cost.

Students start from the teacher's weights. Some take two stages: cross-layer binarization
(attention first, then the MLPs) and the classical two steps (binary inputs first, then weights).
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from bivit.experiment import settings as names
from bivit.experiment.settings import CLB, TEACHER, TWO_STEPS
from bivit.method.ledger import ledger
from bivit.models.binarize import METHODS, TRAININGS, BinaryConfig, Bits, binarize, set_stage

MLPS: dict[str, Bits] = {names.FLOAT_MLP: "float", names.A32: "w1a32", names.A1: "w1a1"}
BIVIT = METHODS["bivit"]
FORMS: dict[str, BinaryConfig] = {
    names.SAB_PWS: BIVIT,
    names.CLB: BIVIT,
    names.TWO_STEPS: BIVIT,
    names.MEAN: METHODS["bivit_mean"],
    names.PAST: replace(BIVIT, backward="direct"),
    names.COUNT: replace(BIVIT, normalize="count"),
    names.BIBERT: METHODS["bibert"],
    names.BOOL_PWS: replace(BIVIT, attention="bool"),
    names.BIT: METHODS["bit_gelu"],
    names.NAIVE: METHODS["naive"],
    names.XNOR: METHODS["xnor"],
    names.BIREAL: METHODS["bireal"],
    names.REACTNET: METHODS["reactnet"],
}


@dataclass(frozen=True)
class Geometry:
    """Of a network for 8 x 8 pixels: pixels of a patch's side, width, blocks, heads (of 16 channels each)."""

    patch: int
    width: int
    depth: int
    heads: int


SHORT, LONG = Geometry(2, 64, 2, 4), Geometry(1, 48, 3, 3)
"""Part B's, 16 tokens; part C's, 64 tokens."""


def digit_transformer(geometry: Geometry) -> VisionTransformer:
    """timm's vision transformer with learned positions; the head reads the mean of the tokens after the final norm.

    Linears start as torch draws them: from timm's smaller numbers (0.02) the teacher ends lower at this width (seed 0,
    validation: 94.3 % against 97.3 %).
    """
    network = VisionTransformer(
        img_size=8,
        patch_size=geometry.patch,
        in_chans=1,
        num_classes=10,
        embed_dim=geometry.width,
        depth=geometry.depth,
        num_heads=geometry.heads,
        mlp_ratio=2,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    )
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return network


def config_of(name: str) -> BinaryConfig:
    """What is binary in a student."""
    form, mlp = next((name.removesuffix(f" {mlp}"), mlp) for mlp in MLPS if name.endswith(f" {mlp}"))
    return replace(FORMS[form], mlp=MLPS[mlp])


def training_of(name: str) -> str:
    """How a student is trained: a name of `TRAININGS`."""
    return "clb" if name.startswith(CLB) else "two_steps" if name.startswith(TWO_STEPS) else "one_step"


def stages(name: str) -> list[str]:
    """Folders of a network's stages, in order; the last has the network's own name."""
    return [*(f"{name}, stage {i}" for i in range(1, TRAININGS[training_of(name)])), name]


def start_stage(before: nn.Module, name: str, stage: int) -> nn.Module:
    """The student at the start of a stage, from 1 on: the first takes a copy of the teacher, the others go on."""
    student = copy.deepcopy(before).train() if stage == 1 else before
    set_stage(student, config_of(name), stage, training_of(name))
    return student


def built(name: str, geometry: Geometry) -> nn.Module:
    """The teacher, or a student in the form that its last stage has; the weights mean nothing."""
    network = digit_transformer(geometry)
    if name != TEACHER:
        binarize(network, config_of(name))
    return network


def costs(students: Iterable[str]) -> dict[str, tuple[float, float]]:
    """The paper's OPs of one image, and bytes: of the teacher in float32, of students packed with a float16 rest."""
    books = {name: ledger(built(name, SHORT), (1, 8, 8)) for name in (TEACHER, *students)}
    return {name: (book.ops_as_built, book.bytes_as_built(4 if name == TEACHER else 2)) for name, book in books.items()}
