"""Reference files of the detector: boundary pooling, the refinement branch, whole heads of both data sets.

In float32 as the reference was: features near a tie may decide otherwise in float64.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.keys import load_strict
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Kind, Tolerance
from stpt.method.boundary_pooling import boundary_max_pooling
from stpt.method.consistency import MAP_WEIGHTS, triplet
from stpt.method.detector import Detector, Variant
from stpt.method.heads import ProposalBranch, frame_windows, level_windows

PREFIX = "coarse_pyramid_detection."
MAPS = ("Mixed_4f", "Mixed_5c")


def check_said(file: ReferenceFile, **found: object) -> None:
    """Raises a UserError for the first option whose value in the config is not the given one, of the tensors."""
    for option, value in found.items():
        if file.config.get(option, value) != value:
            raise UserError(f"config.{option} is {file.config[option]}; the tensors have {value}")


def gradients(file: ReferenceFile, loss: Tensor, places: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """`grad.NAME` for each gradient of the file whose name is `prefix` and the name of a place."""
    wanted = [name for name in places if f"grad.{prefix}{name}" in file.tensors]
    if not wanted:
        return {}
    found = torch.autograd.grad(loss, [places[name] for name in wanted], materialize_grads=True)
    return {f"grad.{prefix}{name}": gradient for name, gradient in zip(wanted, found, strict=True)}


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def boundary_pooling(file: ReferenceFile) -> dict[str, Tensor]:
    """Pooled values of each `in.x...`, and the gradient of their sum with the cotangent."""
    windows, cotangent = file.inputs["segments"], file.inputs["cotangent"]
    batch, channels, cells = file.inputs["x"].shape
    check_said(file, B=batch, C=channels, T=cells, K=windows.shape[1])
    computed = {}
    for name in (name for name in file.inputs if name.startswith("x")):
        x = _leaf(file.inputs[name])
        y = boundary_max_pooling(x, windows)
        computed[f"out.y{name[1:]}"] = y
        computed |= gradients(file, (y * cotangent).sum(), {name: x})
    return computed


def proposal_branch(file: ReferenceFile) -> dict[str, Tensor]:
    """Both outputs of a branch, and the gradients of their sums with the cotangents."""
    c, given = file.config, file.inputs
    inputs = {name: _leaf(given[name]) for name in ("feature", "frame_level_feature")}
    check_said(file, in_channels=inputs["feature"].shape[1], proposal_channels=inputs["frame_level_feature"].shape[1])
    branch = ProposalBranch(c["in_channels"], c["proposal_channels"], groups=c["groups"])
    load_strict(branch, file.state, "sd")
    pooled = boundary_max_pooling(inputs["frame_level_feature"], given["frame_segments"])
    refined, sensitive = branch(inputs["feature"], pooled, given["segments"])
    computed = {"out.prop_feature": refined, "out.feature": sensitive}
    if file.gradients:
        loss = (refined * given["cotangent"]).sum() + (sensitive * given["cotangent_feature"]).sum()
        computed |= gradients(file, loss, {**inputs, **dict(branch.named_parameters())})
    return computed


def thumos_head(file: ReferenceFile) -> dict[str, Tensor]:
    """A head of the THUMOS14 kind, on two maps."""
    if file.config.get("fpn_strides") is not None:
        raise UserError(
            f"config.fpn_strides is {file.config['fpn_strides']}; this head counts in frames on every level"
        )
    return _head(file, "thumos", MAPS)


def anet_head(file: ReferenceFile) -> dict[str, Tensor]:
    """A head of the ActivityNet kind, on the last map."""
    return _head(file, "activitynet", MAPS[1:])


def _head(file: ReferenceFile, variant: Variant, names: Sequence[str]) -> dict[str, Tensor]:
    """Outputs, windows of each level, boundary features of clip 0, and the gradients of both."""
    c = file.config
    maps = {name: _leaf(file.inputs[name]) for name in names}
    first = maps[names[0]]
    check_said(file, kind=KIND_OF[variant], feat_t=first.shape[2], batch=len(first))
    channels = [x.shape[1] for x in maps.values()]
    if c.get("feat_channels", channels)[-len(channels) :] != channels:
        raise UserError(f"config.feat_channels is {c['feat_channels']}; the tensors have {channels}")
    detector = Detector(
        channels,
        [(x.shape[3], x.shape[4]) for x in maps.values()],
        c["num_classes"],
        c["frame_num"],
        c["layer_num"],
        c["conv_channels"],
        variant,
        groups=c.get("groups", 32),
        strides=c.get("fpn_strides"),
        consistency_scales=c.get("ssl_scales", (1, 4, 4)),
    )
    parameters = {f"{PREFIX}{name}": parameter for name, parameter in detector.named_parameters()}
    load_strict(detector, _without_prefix(file.state), "sd")
    outputs = detector([*maps.values()])
    computed = {f"out.{name}": value for name, value in outputs.items()}
    computed |= _windows(outputs, c["frame_num"])
    if cotangents := file.part("in.cotangent."):
        loss = sum(((outputs[name] * cotangent).sum() for name, cotangent in cotangents.items()), torch.zeros(()))
        computed |= gradients(file, loss, {**maps, **parameters})
    if "ssl.segments" in file.inputs:
        alone = {name: _leaf(x[:1]) for name, x in maps.items()}
        parts = detector.consistency([*alone.values()], file.inputs["ssl.segments"][None])
        loss = triplet(*parts, weights=c.get("ssl_weights", MAP_WEIGHTS))
        computed |= {"out.ssl.triplet_loss": loss, **gradients(file, loss, {**alone, **parameters}, "ssl.")}
        for part, of_maps in zip(("anchor", "positive", "negative"), parts, strict=True):
            computed |= {f"out.ssl.{part}.{place}": value for place, value in enumerate(of_maps)}
    return computed


def _windows(outputs: Mapping[str, Tensor], frames: int) -> dict[str, Tensor]:
    """The windows that the branches pooled over, level after level: a level begins where its priors do."""
    computed, centres = {}, outputs["priors"][0, :, 0]
    begins = (torch.nonzero(centres[1:] <= centres[:-1]).flatten() + 1).tolist()
    parts = zip(outputs["loc"].detach().tensor_split(begins, 1), centres.tensor_split(begins), strict=True)
    for level, (loc, of_level) in enumerate(parts):
        segments = torch.stack([of_level * frames - loc[..., 0], of_level * frames + loc[..., 1]], 2)
        computed[f"out.segments.{level}"] = level_windows(loc, frames)
        computed[f"out.frame_segments.{level}"] = frame_windows(segments)
    return computed


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name in state:
        if not name.startswith(PREFIX):
            raise UserError(f"unknown tensor sd.{name}; known: sd.{PREFIX}*")
    return {name.removeprefix(PREFIX): value for name, value in state.items()}


def _tolerance(file: ReferenceFile, key: str) -> Tolerance:
    """Windows are whole numbers. A small gradient among large ones has their rounding."""
    if key.startswith(("out.segments.", "out.frame_segments.")):
        return Tolerance(0.0)
    if not key.startswith("grad."):
        return Tolerance(1e-5)
    of_triplet = "grad.ssl."
    group = file.part(of_triplet) if key.startswith(of_triplet) else _but(file.gradients, "ssl.")
    return Tolerance(1e-5, floor=1e-3 * max(float(x.abs().max()) for x in group.values()))


def _but(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: x for name, x in tensors.items() if not name.startswith(prefix)}


def _pooling_tolerance(file: ReferenceFile, key: str) -> Tolerance:
    return Tolerance(0.0 if key.startswith("out.") else 1e-6)


KIND_OF: dict[Variant, str] = {"thumos": "thumos14", "activitynet": "anet"}
_HEAD = (
    *("kind", "conv_channels", "layer_num", "feat_t", "num_classes", "frame_num", "feat_channels", "groups", "batch"),
    *("rounding_margin", "ssl_scales", "ssl_weights", "fpn_strides"),
)
KINDS = {
    "boundary_pooling": Kind(
        boundary_pooling,
        _pooling_tolerance,
        options=("B", "C", "T", "K"),
        requires=("in.x", "in.segments", "in.cotangent"),
    ),
    "proposal_branch": Kind(
        proposal_branch,
        _tolerance,
        options=("in_channels", "proposal_channels", "groups"),
        requires=("in.feature", "in.frame_level_feature", "in.segments", "in.frame_segments", "sd.*"),
    ),
    "thumos_head": Kind(
        thumos_head,
        _tolerance,
        options=_HEAD,
        requires=("in.Mixed_4f", "in.Mixed_5c", "sd.*"),
        limits={"layer_num": 16},
    ),
    "anet_head": Kind(anet_head, _tolerance, options=_HEAD, requires=("in.Mixed_5c", "sd.*"), limits={"layer_num": 16}),
}
