"""Whole heads in other sizes than the given ones: levels, channels, clips and maps, written down step by step.

Shapes: B clips, C channels, T cells.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from paperkit.testing.golden import (
    changed,
    check_altered_results_fail,
    check_unknown_option_is_refused,
    check_verifies,
    verified,
)
from stpt.method.detector import Detector
from stpt.verification.kinds import KINDS

P = "coarse_pyramid_detection."
GROUPS = 4
THUMOS = dict(
    kind="thumos14", conv_channels=8, layer_num=4, feat_t=16, num_classes=4, frame_num=48, feat_channels=[3, 5],
    groups=GROUPS, batch=2, rounding_margin=0.0, ssl_scales=[1, 3, 3], ssl_weights=[1, 0.5, 0.2], fpn_strides=None,
)  # fmt: skip
ANET = THUMOS | dict(
    kind="anet", layer_num=3, feat_t=12, num_classes=2, frame_num=96, batch=1, fpn_strides=[4, 8, 16]
)  # fmt: skip


class Plain:
    """The head as the text says it, on the tensors of a file."""

    def __init__(self, state: dict[str, Tensor], config: dict[str, Any]) -> None:
        self.state, self.c = state, config

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = (self.state[f"{P}{name}.conv1d.{part}"] for part in ("weight", "bias"))
        kernel, cells = weight.shape[2], x.shape[2]
        total = max(kernel - stride, 0) if cells % stride == 0 else max(kernel - cells % stride, 0)
        return F.conv1d(F.pad(x, (total // 2, total - total // 2)), weight, bias, stride)

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (self.state[f"{P}{name}.{part}"] for part in ("weight", "bias"))
        return F.group_norm(x, GROUPS, weight, bias).relu()

    def squeeze(self, place: int, x: Tensor) -> Tensor:
        weight, bias = (self.state[f"{P}pyramids.{place}.0.conv3d.{part}"] for part in ("weight", "bias"))
        return self.norm(f"pyramids.{place}.1", (torch.einsum("bcthw,ocuhw->bot", x, weight) + bias[:, None]))

    def tower(self, name: str, x: Tensor) -> Tensor:
        for place in range(2):
            x = self.norm(f"{name}.{place}.1", self.conv(f"{name}.{place}.0", x))
        return x

    def brick(self, name: str, x: Tensor) -> Tensor:
        return self.norm(f"{name}.1", self.conv(f"{name}.0", x))

    def pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        features = [self.squeeze(place, x) for place, x in enumerate(maps)]
        while len(features) < self.c["layer_num"]:
            place = len(features)
            features.append(self.norm(f"pyramids.{place}.1", self.conv(f"pyramids.{place}.0", features[-1], 2)))
        if len(maps) == 2:
            features[0] = features[0] + features[1].repeat_interleave(2, 2)
        return features

    def frames(self, first: Tensor) -> Tensor:
        x = first.repeat_interleave(self.c["frame_num"] // first.shape[2], 2)
        for place in (0, 3, 6):
            x = self.norm(f"deconv.{place + 1}", self.conv(f"deconv.{place}", x))
        return x

    def branch(self, name: str, x: Tensor, frames: Tensor, windows: Tensor, of_frames: Tensor) -> tuple[Tensor, Tensor]:
        sensitive = self.brick(f"{name}.lr_conv", x)
        parts = (
            self.brick(f"{name}.roi_conv", pooled(frames, of_frames)), pooled(sensitive, windows),
            self.brick(f"{name}.cur_point_conv", x),
        )  # fmt: skip
        return self.brick(f"{name}.proposal_conv", torch.cat(parts, 1)), sensitive

    def __call__(self, maps: list[Tensor]) -> dict[str, Tensor]:
        out: dict[str, Any] = {}
        columns: dict[str, list[Tensor]] = {}
        features, frame_num = self.pyramid(maps), self.c["frame_num"]
        frames = self.frames(features[0])
        for level, x in enumerate(features):
            cells = x.shape[2]
            loc_tower, conf_tower = self.tower("loc_tower", x), self.tower("conf_tower", x)
            loc = (self.state[f"{P}loc_heads.{level}.scale"] * self.conv("loc_head", loc_tower)).exp().mT
            loc = loc * (self.c["fpn_strides"][level] if self.c["fpn_strides"] else 1)
            centre = torch.arange(cells)[None]
            d = loc.detach() / frame_num * cells
            windows = around(centre - d[..., 0], centre + d[..., 1], d.sum(2))
            start = (centre + 0.5) / cells * frame_num - loc[..., 0].detach()
            end = (centre + 0.5) / cells * frame_num + loc[..., 1].detach()
            of_frames = around(start, end, end - start + 1)
            loc_out, loc_u = self.branch("loc_proposal_branch", loc_tower, frames, windows, of_frames)
            conf_out, conf_u = self.branch("conf_proposal_branch", conf_tower, frames, windows, of_frames)
            prior = torch.stack([(centre[0] + 0.5) / cells, torch.full((cells,), float(level))], 1)
            found = dict(
                loc=loc, conf=self.conv("conf_head", conf_tower).mT, prop_loc=self.conv("prop_loc_head", loc_out).mT,
                prop_conf=self.conv("prop_conf_head", conf_out).mT, center=self.conv("center_head", loc_out).mT,
                priors=prior[None, :, : 2 if len(maps) == 1 else 1],
            )  # fmt: skip
            for name, value in found.items():
                columns.setdefault(name, []).append(value)
            out[f"segments.{level}"], out[f"frame_segments.{level}"] = windows, of_frames
            if level == 0:
                for name, value in (("_loc_prop", loc_u), ("_conf_prop", conf_u), ("", frames)):
                    out[f"start{name}"], out[f"end{name}"] = value.mT.chunk(2, 2)
        return out | {name: torch.cat(parts, 1) for name, parts in columns.items()}

    def triplet(self, maps: list[Tensor], segments: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        first = self.pyramid(maps)[0]
        looked_at = [self.frames(first)] + [
            self.brick(f"{name}_proposal_branch.lr_conv", self.tower(f"{name}_tower", first))
            for name in ("loc", "conf")
        ]
        windows = around(segments[:, 0], segments[:, 1], segments[:, 1] - segments[:, 0] + 1)
        out, total = {}, torch.zeros(())
        for place, x in enumerate(looked_at):
            starts, ends = pooled(x, (windows / self.c["ssl_scales"][place])[None]).chunk(2, 1)
            anchor, positive, negative = ends[..., 0], starts[..., 1], starts[..., 2]
            out |= {f"anchor.{place}": anchor, f"positive.{place}": positive, f"negative.{place}": negative}
            near, far = ((anchor - other + 1e-6).norm(dim=1) for other in (positive, negative))
            total = total + self.c["ssl_weights"][place] * (1 + near - far).clamp(min=0).mean()
        return out, total


def around(start: Tensor, end: Tensor, length: Tensor) -> Tensor:
    inner, outer = (length / 4).clamp(min=1), (length / 10).clamp(min=1)
    return torch.stack([start - outer, start + inner, end - inner, end + outer], -1).round()


def pooled(x: Tensor, windows: Tensor) -> Tensor:
    """Boundary max pooling, window after window."""
    half, last = x.shape[1] // 2, x.shape[2] - 1
    clips = []
    for clip, of_clip in zip(x, windows.tolist(), strict=True):
        columns = []
        for window in of_clip:
            a, b, c, d = (min(max(int(w), 0), last) for w in window)
            starts, ends = clip[:half, a : max(a, b) + 1], clip[half:, c : max(c, d) + 1]
            columns.append(torch.cat([starts.max(1).values, ends.max(1).values]))
        clips.append(torch.stack(columns, 1))
    return torch.stack(clips)


def made(config: dict[str, Any], folder: Path) -> Path:
    """A file of the head kinds; parameters random, those of norms and scales too."""
    torch.manual_seed(3)
    shapes = {"Mixed_4f": (3, config["feat_t"], 2, 3), "Mixed_5c": (5, config["feat_t"] // 2, 1, 2)}
    if config["kind"] == "anet":
        shapes = {"Mixed_5c": (5, config["feat_t"], 2, 2)}
    maps = {name: torch.randn(config["batch"], *shape, requires_grad=True) for name, shape in shapes.items()}
    variant: Any = "activitynet" if config["kind"] == "anet" else "thumos"
    keys = Detector(
        [shape[0] for shape in shapes.values()], [shape[2:] for shape in shapes.values()], config["num_classes"],
        config["frame_num"], config["layer_num"], 8, variant, groups=GROUPS,
    ).state_dict()  # fmt: skip
    state = {f"{P}{name}": (0.3 * torch.randn(x.shape) + (x.ndim == 1)) for name, x in keys.items()}
    plain = Plain({name: x.requires_grad_() for name, x in state.items()}, config)
    out = plain([*maps.values()])
    cotangents = {name: torch.randn(x.shape) for name, x in out.items() if "segments" not in name and name != "priors"}
    segments = torch.tensor([[3.0, 14.0], [22.0, 40.0], [15.0, 21.0]])
    wanted = [*maps, f"{P}loc_head.conv1d.weight", f"{P}loc_heads.1.scale", f"{P}deconv.0.conv1d.weight"]
    places = {**maps, **state}
    loss = sum(((out[name] * cotangent).sum() for name, cotangent in cotangents.items()), torch.zeros(()))
    gradients = torch.autograd.grad(loss, [places[name] for name in wanted])
    alone = [x[:1].detach().requires_grad_() for x in maps.values()]
    of_ssl, triplet = plain.triplet(alone, segments)
    tensors = {f"sd.{name}": x for name, x in state.items()} | {f"in.{name}": x for name, x in maps.items()}
    tensors |= {f"in.cotangent.{name}": x for name, x in cotangents.items()}
    tensors |= {f"out.{name}": x for name, x in out.items()} | {f"out.ssl.{name}": x for name, x in of_ssl.items()}
    tensors |= {f"grad.{name}": x for name, x in zip(wanted, gradients, strict=True)}
    tensors |= {f"grad.ssl.{name}": x for name, x in zip(maps, torch.autograd.grad(triplet, alone), strict=True)}
    tensors |= {"in.ssl.segments": segments, "out.ssl.triplet_loss": triplet}
    kind = "anet_head" if config["kind"] == "anet" else "thumos_head"
    path = folder / f"{kind}.safetensors"
    save_file(
        {name: x.detach().contiguous().clone() for name, x in tensors.items()}, path,
        {"kind": kind, "config": json.dumps(config)},
    )  # fmt: skip
    return path


@pytest.fixture(scope="module", params=["thumos_head", "anet_head"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(THUMOS if request.param == "thumos_head" else ANET, tmp_path_factory.mktemp("head"))


def test_verifies(file: Path) -> None:
    check_verifies(file, KINDS)


def test_altered_result_fails(file: Path, tmp_path: Path) -> None:
    check_altered_results_fail(file, KINDS, tmp_path, most=8)
    check_unknown_option_is_refused(file, KINDS, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(batch=3), "config.batch is 3"),
        (lambda c: c.update(feat_channels=[3, 4]), "config.feat_channels is [3, 4]"),
        (lambda c: c.update(layer_num=99), "the most that this kind takes is 16"),
        (lambda c: c.update(layer_num=5, fpn_strides=None), "sd does not fit Detector"),
        (lambda c: c.update(num_classes=9), "sd does not fit Detector"),
        (lambda c: c.update(groups=3), "8 channels are not a multiple of 3 groups"),
        (lambda c: c.update(ssl_weights=[1, 1, 1]), "FAIL  out.ssl.triplet_loss"),
        (lambda c: c.update(kind="kinetics"), "config.kind is kinetics"),
        (lambda c: c.update(fpn_strides=[3, 2, 1, 1]), "strides"),
    ],
)
def test_options_count(file: Path, change: Any, message: str, tmp_path: Path) -> None:
    good, printed = verified(changed(file, tmp_path, config=change), KINDS)
    assert not good and message in printed, printed
