"""The figures of a run folder, drawn from metrics.json and the first seed's weights."""

import json
from importlib.resources import files
from pathlib import Path

import torch

from paperkit.results.metrics import Metrics
from paperkit.results.report import save_figure
from stpt.experiment.clips import CLASSES, CUE_FRAMES, FIRST, FRAMES, Clips, make_clips
from stpt.experiment.compute import macs_of
from stpt.experiment.measuring import found_in
from stpt.experiment.run import trained
from stpt.experiment.settings import LLGG, LLLL, REFINED, ExperimentConfig
from stpt.experiment.summary import AVERAGE, MACS
from stpt.figures.attention_maps import attention_maps, draw_attention_maps
from stpt.figures.cost_by_stage import draw_cost_by_stage
from stpt.figures.map_against_macs import Point, draw_map_against_macs
from stpt.figures.start_end_features import draw_start_end_features
from stpt.figures.timeline import Bar, draw_timeline
from stpt.method.backbone import Backbone
from stpt.method.soft_nms import Detections
from stpt.models.stpt import STPT

CLIPS = 8
LEAST = 0.1
"""Score below which the timeline shows no detection."""


def draw(metrics: Metrics, run: Path, folder: Path, config: ExperimentConfig) -> list[Path]:
    """Every figure of a run as PNG files in `folder`."""
    networks = {arm: trained(arm, config.first_seed, run, config) for arm in config.arms}
    clips = make_clips(config.split, CLIPS)
    shown = int((clips.actions[..., 2] > 0).sum(1).argmax())  # the first clip with most actions
    clip = Clips(clips.frames[shown : shown + 1], clips.actions[shown : shown + 1])
    paths = {
        name: folder / f"{name}.png" for name in ("cost_by_stage", "map_against_macs", "attention_maps", "timeline")
    }
    costs = {pattern: macs_of(pattern).stages for pattern in (LLGG, "GGGG")}
    in_billions = {
        pattern: [{kind: macs / 1e9 for kind, macs in stage.items()} for stage in stages]
        for pattern, stages in costs.items()
    }
    save_figure(draw_cost_by_stage(in_billions), paths["cost_by_stage"])
    save_figure(draw_map_against_macs(panels(metrics, config)), paths["map_against_macs"])

    first = clip.of_clip(0)[0]
    where = (float(first[:2].mean()), 0.5, 0.5)
    looks = {}
    for arm in (LLGG, LLLL):
        backbone = networks[arm].backbone
        assert isinstance(backbone, Backbone)
        looks[arm] = attention_maps(backbone, clip.frames[0], where)
    title = f"What the token at the cross, in an action, attends to; the band is shown up to frame {CUE_FRAMES}"
    save_figure(draw_attention_maps(clip.frames[0, 0].clamp(0, 1), looks, where, title), paths["attention_maps"])

    truth = [
        Bar(start * FRAMES, end * FRAMES, CLASSES[int(label) - 1]) for start, end, label in clip.of_clip(0).tolist()
    ]
    draw_timeline(
        paths["timeline"],
        truth,
        {name: bars(found) for name, found in found_by(networks, clip).items()},
        title="Half of a class is the place of the band, 100 frames before: LLLL guesses it",
        unit="frames",
        length=FRAMES,
        begin=FIRST - 10,
        least=LEAST,
    )
    if REFINED in networks:
        paths["start_end_features"] = folder / "start_end_features.png"
        with torch.no_grad():
            outputs = networks[REFINED].eval()(clip.frames)
        actions = [(bar.start, bar.end) for bar in truth]
        features = {REFINED: (outputs["start"][0], outputs["end"][0])}
        save_figure(draw_start_end_features(features, actions), paths["start_end_features"])
    return list(paths.values())


def found_by(networks: dict[str, STPT], clip: Clips) -> dict[str, Detections]:
    """Lane of the timeline -> what was found in one clip."""
    found = {arm: found_in(network, clip.frames)[0] for arm, network in networks.items() if arm != REFINED}
    if REFINED in networks:
        for name, coarse in (("coarse", True), ("refined", False)):
            found[f"{LLGG}, whole head:\n{name}"] = found_in(networks[REFINED], clip.frames, coarse)[0]
    return found


def bars(found: Detections) -> list[Bar]:
    """As the timeline takes them."""
    each = zip(found.segments.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [Bar(start, end, CLASSES[label - 1], score) for (start, end), score, label in each]


def panels(metrics: Metrics, config: ExperimentConfig) -> dict[str, tuple[str, list[Point]]]:
    """Left this run; right THUMOS14 as published, where both numbers are known."""
    ours = [
        Point(arm, metrics.row(arm, MACS).mean, metrics.row(arm, AVERAGE).values, "measured in this run")
        for arm in config.patterns
    ]
    table = json.loads((files("stpt") / "published" / "thumos14.json").read_text(encoding="utf-8"))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    known = [
        Point(f"{row['method']}, {row['input']}", row["macs_G"], [row["average"]], "published, not measured here")
        for row in rows
        if row["macs_G"] is not None and row["average"] is not None
    ]
    return {
        "Clips of moving digits; small points are seeds": ("million multiply-accumulates a clip", ours),
        "THUMOS14": ("billion multiply-accumulates of 256 frames", known),
    }
