"""AFSD's detector, which STPT puts on its last two maps (Lin et al., CVPR 2021, section 3; "coarse pyramid detection").

Each cell of a temporal pyramid gives a coarse segment and class scores. What the features show around the segment's
boundaries then refines both, and tells how well the segment will fit. The children have the names of AFSD's files.

Shapes: B clips, T frames, C channels, t_l cells of level l, K cells of all levels, N classes with the background (0).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpt.method.boundary_pooling import boundary_max_pooling
from stpt.method.convolutions import Unit1D
from stpt.method.heads import ProposalBranch, ScaleExp, frame_windows, level_windows
from stpt.method.pyramid import HeadNorm, Pyramid, norm_relu

Variant = Literal["thumos", "activitynet"]
Outputs = dict[str, Tensor]


class Detector(nn.Module):
    """Pyramid, coarse heads shared by its levels, and the refinement.

    Args:
        in_channels, map_sizes: of the backbone's maps, (H, W) in space; `activitynet` uses the last one alone.
        num_classes: N, the background counted.
        frames: T of a clip.
        levels: of the pyramid.
        channels: C; the frame-level features are C / 2 for starts and C / 2 for ends.
        variant: `thumos`: two maps, the first level takes up the second. `activitynet`: one map; distances are in units
            of a stride of each level, priors tell their level, and heads start from normal(0, 0.01).
        head_norm: `gn` (GroupNorm, AFSD) or `ln` (LayerNorm over channels, each cell by itself).
        refine: with False the coarse heads alone.
        groups: of GroupNorm.
        strides: frames of a unit of distance on each level of `activitynet`; AFSD's are 4, 8, 16 and so on.
        consistency_scales: frames a cell of the maps that boundary consistency looks at. AFSD's; on ActivityNet, whose
            first level has a cell each 8 frames, that is a slip, and (1, 8, 8) is right.

    Raises:
        ValueError: an unknown variant or norm, sizes that are too small, an odd number of channels, strides for another
            number of levels.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (384, 768),
        map_sizes: Sequence[tuple[int, int]] = ((6, 6), (3, 3)),
        num_classes: int = 21,
        frames: int = 256,
        levels: int = 6,
        channels: int = 512,
        variant: Variant = "thumos",
        head_norm: HeadNorm = "gn",
        refine: bool = True,
        groups: int = 32,
        strides: Sequence[float] | None = None,
        consistency_scales: Sequence[float] = (1, 4, 4),
    ) -> None:
        super().__init__()
        if variant not in ("thumos", "activitynet"):
            raise ValueError(f"variant {variant!r} is none of thumos, activitynet")
        if head_norm not in ("gn", "ln"):
            raise ValueError(f"head_norm {head_norm!r} is none of gn, ln")
        least = dict(num_classes=2, frames=1, levels=1, channels=2, groups=1)
        for name, value in zip(least, (num_classes, frames, levels, channels, groups), strict=True):
            if not isinstance(value, int) or value < least[name]:
                raise ValueError(f"{name} {value!r} must be a whole number from {least[name]} on")
        if channels % 2:
            raise ValueError(f"{channels} channels have no halves for starts and ends")
        if len(consistency_scales) != 3 or min(consistency_scales) <= 0:
            raise ValueError(f"consistency_scales {consistency_scales} must be three numbers above 0")
        self.variant, self.frames, self.refine = variant, frames, refine
        self.consistency_scales = tuple(consistency_scales)
        if variant == "activitynet":
            in_channels, map_sizes = in_channels[-1:], map_sizes[-1:]
            strides = [4 * 2**level for level in range(levels)] if strides is None else strides
        self.strides = (1.0,) * levels if strides is None else tuple(strides)
        if len(self.strides) != levels:
            raise ValueError(f"{len(self.strides)} strides for {levels} levels")

        def brick(kernel: int) -> nn.Sequential:
            return norm_relu(Unit1D(channels, channels, kernel), channels, head_norm, groups)

        self.pyramids = Pyramid(in_channels, map_sizes, levels, channels, head_norm, groups)
        self.loc_tower = nn.Sequential(brick(3), brick(3))
        self.conf_tower = nn.Sequential(brick(3), brick(3))
        self.loc_heads = nn.ModuleList(ScaleExp() for _ in range(levels))
        self.loc_head = Unit1D(channels, 2, 3)
        self.conf_head = Unit1D(channels, num_classes, 3)
        if refine:
            self.loc_proposal_branch = ProposalBranch(channels, channels, head_norm, groups)
            self.conf_proposal_branch = ProposalBranch(channels, channels, head_norm, groups)
            self.prop_loc_head = Unit1D(channels, 2, 1)
            self.prop_conf_head = Unit1D(channels, num_classes, 1)
            self.center_head = Unit1D(channels, 1, 3)
            self.deconv = nn.Sequential(*brick(3), *brick(3), *brick(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot's uniform for convolutions; ActivityNet's towers, heads and branches normal(0, 0.01). Biases are 0."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv1d | nn.Conv3d):
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if self.variant == "activitynet" and not name.startswith(("pyramids.", "deconv.")):
                    nn.init.normal_(module.weight, std=0.01)
                else:
                    nn.init.xavier_uniform_(module.weight)

    def forward(self, maps: Sequence[Tensor]) -> Outputs:
        """Maps of the backbone (B, C', T', H, W) -> tensors by name.

        `loc` (B, K, 2) distances from a cell to start and end in frames, `conf` (B, K, N) logits, `priors` (1, K, 1 or
        2) centres of the cells in 0 to 1 and, in `activitynet`, their levels. With refinement: `prop_loc` (B, K, 2)
        shifts in half lengths, `prop_conf` (B, K, N), `center` (B, K, 1) logit of the expected IoU; `start`, `end` (B,
        T, C / 2) frame-level features and `{start,end}_{loc,conf}_prop` (B, t_0, C) those of level 0.

        Raises:
            ValueError: maps of another size in space.
        """
        features = self.pyramids(self._used(maps))
        loc_towers, conf_towers = [[*map(tower, features)] for tower in (self.loc_tower, self.conf_tower)]
        locs = [
            _cells_first(scale(self.loc_head(tower))) * stride
            for scale, tower, stride in zip(self.loc_heads, loc_towers, self.strides, strict=True)
        ]
        outputs = {
            "loc": torch.cat(locs, 1),
            "conf": torch.cat([_cells_first(self.conf_head(tower)) for tower in conf_towers], 1),
            "priors": torch.cat([self._priors(loc, level) for level, loc in enumerate(locs)])[None],
        }
        if self.refine:
            outputs |= self._refined(features[0], locs, loc_towers, conf_towers, outputs)
        return outputs

    def _refined(
        self, first: Tensor, locs: list[Tensor], loc_towers: list[Tensor], conf_towers: list[Tensor], coarse: Outputs
    ) -> Outputs:
        frame_level = self._frame_level(first)
        with torch.no_grad():
            centre = coarse["priors"][..., 0] * self.frames
            segments = torch.stack([centre - coarse["loc"][..., 0], centre + coarse["loc"][..., 1]], 2)
        # Both branches pool the same frame-level features over the same windows: once, for all levels.
        pooled = boundary_max_pooling(frame_level, frame_windows(segments)).split([loc.shape[1] for loc in locs], 2)
        prop_locs, prop_confs, centers, sensitive = [], [], [], []
        for loc, of_level, loc_tower, conf_tower in zip(locs, pooled, loc_towers, conf_towers, strict=True):
            windows = level_windows(loc.detach(), self.frames)
            loc_feature, loc_sensitive = self.loc_proposal_branch(loc_tower, of_level, windows)
            conf_feature, conf_sensitive = self.conf_proposal_branch(conf_tower, of_level, windows)
            prop_locs.append(_cells_first(self.prop_loc_head(loc_feature)))
            prop_confs.append(_cells_first(self.prop_conf_head(conf_feature)))
            centers.append(_cells_first(self.center_head(loc_feature)))
            sensitive.append((loc_sensitive, conf_sensitive))
        start, end = _halves(frame_level)
        refined = dict(prop_loc=prop_locs, prop_conf=prop_confs, center=centers)
        outputs = {name: torch.cat(parts, 1) for name, parts in refined.items()} | dict(start=start, end=end)
        for name, feature in zip(("loc", "conf"), sensitive[0], strict=True):
            outputs[f"start_{name}_prop"], outputs[f"end_{name}_prop"] = _halves(feature)
        return outputs

    def consistency(self, maps: Sequence[Tensor], segments: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Features of boundaries in clips whose action was cut, for `stpt.method.consistency.triplet`.

        Args:
            maps: of the backbone for the cut clips.
            segments: (B, 3, 2) in frames: first part, second part, inserted background.

        Returns:
            Anchors, positives and negatives; each on three maps: (B, C / 2), (B, C), (B, C).
        """
        first = self.pyramids(self._used(maps), levels=1)[0]
        looked_at = (
            self._frame_level(first),
            self.loc_proposal_branch.lr_conv(self.loc_tower(first)),
            self.conf_proposal_branch.lr_conv(self.conf_tower(first)),
        )
        windows = frame_windows(segments.float())
        anchors, positives, negatives = [], [], []
        for features, scale in zip(looked_at, self.consistency_scales, strict=True):
            # Not rounded again: the pooling cuts towards zero.
            starts, ends = boundary_max_pooling(features, windows / scale).chunk(2, 1)
            anchors.append(ends[..., 0])
            positives.append(starts[..., 1])
            negatives.append(starts[..., 2])
        return anchors, positives, negatives

    def _used(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        return maps[-1:] if self.variant == "activitynet" else maps

    def _frame_level(self, first: Tensor) -> Tensor:
        """Level 0 (B, C, t_0) at every frame: (B, C, T), the first half sensitive to starts, the second to ends."""
        return self.deconv(F.interpolate(first, self.frames, mode="nearest"))

    def _priors(self, loc: Tensor, level: int) -> Tensor:
        """(t_l, 1 or 2): from the level's own length, so that it fits whatever the clip's."""
        centres = (torch.arange(loc.shape[1], device=loc.device, dtype=loc.dtype) + 0.5) / loc.shape[1]
        columns = [centres] if self.variant == "thumos" else [centres, torch.full_like(centres, level)]
        return torch.stack(columns, 1)


def _cells_first(x: Tensor) -> Tensor:
    """(B, C, t) -> (B, t, C)."""
    return x.transpose(1, 2)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, t) -> two of (B, t, C / 2)."""
    start, end = x.transpose(1, 2).chunk(2, 2)
    return start, end
