"""Reference files of the evaluation: suppression, decoding of several windows, mean average precision."""

import re
from typing import Any

import numpy as np
import torch

from paperkit.errors import UserError
from paperkit.verification.verify import Kind, ReferenceFile, Tolerance
from stpt.method.decoding import decode
from stpt.method.detection_map import Instances, mean_average_precision
from stpt.method.soft_nms import ACTIVITYNET, PostProcess, Windows, detections, hard_nms, soft_nms

FIRST_ROWS = {"single": 1, "pair": 2}
"""Cases of soft-NMS that take only the first rows."""
NAMES = {"s": "sigma", "top": "top_k", "thr": "min_score"}
"""What the number in a case's name is."""
WORDS = {"sigma": r"sigma\s+([\d.e+-]+\d|\d)", "top_k": r"top_k\s+(\d+)", "min_score": r"min score\s+([\d.e+-]+\d|\d)"}
"""How a case's description says the same."""
OUTPUTS = ("loc", "conf", "prop_loc", "prop_conf", "center")


def nms(file: ReferenceFile) -> dict[str, Any]:
    """Soft-NMS of every case by the released rule, and hard NMS at 0.5."""
    rows = file.inputs["segments"]
    _check_said(file, "N", len(rows))
    described = file.config.get("cases", {})
    if not isinstance(described, dict):
        raise UserError("config.cases is no mapping from a case's name to its description")
    computed: dict[str, Any] = {}
    for case in {**described, **file.part("out.soft.")}:
        file.outputs[f"soft.{case}"]  # a case that is described has a result
        some = rows[: FIRST_ROWS.get(case, len(rows))]
        kept = soft_nms(some[:, :2], some[:, 2], rule="afsd", **_setting(case, str(described.get(case, ""))))
        result = some[torch.from_numpy(kept.which)].clone()
        result[:, 2] = torch.from_numpy(kept.scores)
        computed[f"out.soft.{case}"] = result
        computed[f"out.soft_count.{case}"] = torch.tensor(len(result))
    keep = torch.from_numpy(hard_nms(rows[:, :2], rows[:, 2]))
    return {**computed, "out.nms_keep": keep, "out.nms_count": torch.tensor(len(keep))}


def _setting(case: str, described: str) -> dict[str, Any]:
    """The parameters of a case, by its name and its description.

    Raises:
        UserError: a name of no known form, or one that says another number than the description.
    """
    found: dict[str, Any] = {"sigma": 0.5, "top_k": 5000, "min_score": 0.001}
    if case == f"s{ACTIVITYNET.sigma}":
        found = {key: getattr(ACTIVITYNET, key) for key in found}
    said = {key: float(match[1]) for key, words in WORDS.items() if (match := re.search(words, described))}
    named = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?(?:e-?\d+)?)", case)
    if named and named[1] in NAMES:
        key, number = NAMES[named[1]], float(named[2])
        if said.setdefault(key, number) != number:
            raise UserError(f"case {case} is described with {key} {said[key]:g}")
    elif case not in FIRST_ROWS:
        raise UserError(f"unknown case {case!r}; known: s, top or thr and a number, {', '.join(FIRST_ROWS)}")
    found |= said
    return {**found, "top_k": int(found["top_k"])}


def postprocess(file: ReferenceFile) -> dict[str, Any]:
    """Decoded windows of one video, and what is left of each class by the released rule, in seconds."""
    c, offsets = file.config, file.config["offsets"]
    cells = len(file.inputs["priors"])
    if not isinstance(offsets, list) or not offsets or not all(isinstance(offset, int) for offset in offsets):
        raise UserError("config.offsets is no list of whole numbers, one for each window")
    given = len({name.partition(".")[0] for name in file.inputs if re.match(r"w\d+\.", name)})
    if given != len(offsets):
        raise UserError(f"config.offsets has {len(offsets)} windows; the tensors have {given}")
    if "layers" in c and "feat_t" in c and sum(int(c["feat_t"]) >> level for level in range(int(c["layers"]))) != cells:
        raise UserError(f"{c['layers']} levels from {c['feat_t']} cells on are not the {cells} priors of the file")
    _check_said(file, "num_classes", file.inputs["w0.conf"].shape[-1])
    outputs = {
        name: torch.stack([file.inputs[f"w{window}.{name}"] for window in range(given)]).float() for name in OUTPUTS
    }
    segments, scores = decode({**outputs, "priors": file.inputs["priors"][None]}, int(c["clip_length"]))
    computed: dict[str, Any] = {}
    for window in range(given):
        computed[f"out.w{window}.segments"], computed[f"out.w{window}.scores"] = segments[window], scores[window]
    how = PostProcess(
        above=c["conf_thresh"], sigma=c["sigma"], top_k=c["top_k"], min_score=c.get("min_score", 0.001), rule="afsd"
    )
    windows = Windows(segments.numpy(), scores.numpy(), np.array(offsets), c["sample_fps"])
    found = detections([windows], how)[0]
    for label in range(1, scores.shape[-1]):
        mine = found.labels == label
        rows = np.concatenate([found.segments[mine], found.scores[mine, None]], 1)
        if len(rows):
            file.outputs[f"class{label}"]  # a class with detections has a result
        computed[f"out.class{label}"] = torch.from_numpy(rows)
    return computed


def map_eval(file: ReferenceFile) -> dict[str, Any]:
    """Average precision at each set of thresholds; the classes in the order in which the subset's actions name them."""
    c, inputs = file.config, {name: value.numpy() for name, value in file.inputs.items()}
    for name in ("gt_video", "gt_label", "gt_segment", "pred_video", "pred_label", "pred_segment", "pred_score"):
        file.inputs[name]  # named if it is missing
    other, videos, labels = c.get("video_in_other_subset", -1), int(c["num_videos"]), int(c["num_classes"])
    truth = Instances(inputs["gt_video"], inputs["gt_label"], inputs["gt_segment"].astype(np.float64))
    scores = inputs["pred_score"].astype(np.float64)
    found = Instances(inputs["pred_video"], inputs["pred_label"], inputs["pred_segment"].astype(np.float64), scores)
    for each in (truth, found):
        if len(each) and not (each.videos.min() >= 0 and each.videos.max() < videos):
            raise UserError(f"a video of the tensors is none of the {videos} that config.num_videos says")
    truth, found = (
        each.only(~np.isin(each.videos, other) & (each.labels >= 0) & (each.labels < labels)) for each in (truth, found)
    )
    # As in a file of results: video after video, within each as the rows stand.
    truth, found = (each.only(np.argsort(each.videos, kind="stable")) for each in (truth, found))
    present, first = np.unique(truth.labels, return_index=True)
    column = np.full(labels, -1, np.int64)
    column[present[np.argsort(first)]] = np.arange(len(present))
    computed: dict[str, Any] = {"out.class_column": torch.from_numpy(column)}
    for name in file.inputs:
        if not name.endswith(".tiou"):
            continue
        result = mean_average_precision(found, truth, inputs[name].tolist())
        ap = np.zeros_like(result.ap)
        ap[:, column[result.classes]] = result.ap
        values = {"ap": ap, "mAP": result.mean, "average_mAP": np.float64(result.average)}
        computed |= {f"out.{name.removesuffix('.tiou')}.{key}": torch.tensor(value) for key, value in values.items()}
    return computed


def _check_said(file: ReferenceFile, option: str, found: int) -> None:
    if option in file.config and file.config[option] != found:
        raise UserError(f"config.{option} is {file.config[option]}; the tensors have {found}")


def _map_tolerance(file: ReferenceFile, key: str) -> Tolerance:
    """Of the reference's float64; what a file keeps in float32 has that type's precision."""
    return Tolerance(1e-7 if file.tensors[key].dtype == torch.float32 else 1e-12)


KINDS = {
    "nms": Kind(nms, 1e-6, options=("N", "cases"), requires=("in.segments",)),
    "postprocess_thumos": Kind(
        postprocess, 1e-5,
        options=("num_classes", "clip_length", "sample_fps", "offsets", "conf_thresh", "sigma", "top_k", "min_score",
                 "layers", "feat_t"),
        requires=("in.priors", "in.w0.*"), limits={"layers": 64},
    ),
    "map_eval": Kind(
        map_eval, _map_tolerance,
        options=("num_videos", "num_classes", "subset", "video_in_other_subset", "note"), requires=("in.*.tiou",),
    ),
}  # fmt: skip
"""This module's part of the table."""
