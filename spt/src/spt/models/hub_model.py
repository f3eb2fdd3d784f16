"""A tuned classifier described by plain values, so that a folder or the hub can hold all of it: trunk, delta and head.

The delta of `spt.models.delta` needs its backbone beside it; this form needs nothing. `config.json` says how to
build the model and which parameters are tuned, `model.safetensors` holds every tensor.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.files.hub import SavedInFolder
from paperkit.files.weights import load_strict
from spt.method.allocation import Rule, Selection
from spt.method.candidates import find_candidates
from spt.method.tuning import Placement, apply_selection
from spt.models.backbones import create_backbone
from spt.models.spt_model import SPTModel


class SPTClassifier(nn.Module, SavedInFolder, library_name="spt", tags=["spt", "image-classification"]):
    """A timm model with what a selection names added to it; every argument is a plain value.

    Args:
        arch: timm architecture.
        num_classes: of the head.
        modules, vectors: names of the tuned matrices and whole vectors (separate q, k, v).
        entries: name -> number of single entries; where they stand is in the weights' own index tensors.
        rule: of `spt.method.allocation.Rule`.
        placement: of `spt.method.tuning.Placement`.
        sizes: further arguments of timm's constructor.

    Raises:
        UserError: for an architecture that timm lacks, or names that it does not have.

    Example:
        >>> SPTClassifier.of(tuned, "vit_base_patch16_224").save_pretrained("folder")
        >>> model = SPTClassifier.from_pretrained("folder").eval()
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        modules: list[str] | None = None,
        vectors: list[str] | None = None,
        entries: Mapping[str, int] | None = None,
        rule: Mapping[str, Any] | None = None,
        placement: Mapping[str, Any] | None = None,
        sizes: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # Random numbers of a caller are not touched by weights that are loaded over at once.
        with torch.random.fork_rng(devices=[]):
            model = create_backbone(arch, num_classes, drop_path=0.0, **dict(sizes or {}))
            fixed = ("cls_token",) if any("cls_token" in name for name, _ in model.named_parameters()) else ()
            places = {name: torch.arange(count) for name, count in dict(entries or {}).items()}
            shapes = find_candidates(model, fixed=fixed).shapes()
            selection = Selection(list(modules or []), list(vectors or []), places, shapes, Rule(**dict(rule or {})))
            self.model = apply_selection(model, selection, Placement(**dict(placement or {})), fixed=fixed)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes)."""
        return self.model(images)

    @classmethod
    def of(cls, tuned: SPTModel, arch: str, sizes: Mapping[str, Any] | None = None) -> "SPTClassifier":
        """A copy of a tuned model.

        Args:
            arch, sizes: what its backbone was built from; the weights must fit.
        """
        selection, delta = tuned.selection, tuned.delta()
        bias = next(value for name, value in delta.tensors.items() if delta.head in name and name.endswith("bias"))
        built = cls(
            arch,
            bias.numel(),
            modules=list(selection.modules),
            vectors=list(selection.vectors),
            entries={name: index.numel() for name, (index, _) in delta.entries.items()},
            rule=asdict(selection.rule),
            placement=asdict(tuned.placement),
            sizes=dict(sizes or {}),
        )
        load_strict(built.model, tuned.base.state_dict(), "the tuned model")
        return built
