"""SPT and its baselines on a real backbone: the same harness, counting and saved form for all."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from paperkit.errors import UserError
from spt.method.allocation import Rule, Selection
from spt.method.candidates import find_candidates
from spt.method.probe import probe, refuse
from spt.method.sensitivity import Sensitivities, load_sensitivities
from spt.method.tuning import Placement, apply_selection
from spt.models.baselines import add_bottlenecks, add_prompts
from spt.models.delta import kept_buffers
from spt.models.selection_file import read_selection
from spt.models.spt_model import SPTConfig, choose
from spt.training.recipe import MethodOptions

HEAD = "head"


@dataclass
class Tuned:
    """A backbone ready to be tuned.

    Attributes:
        model: frozen but for what the method trains.
        selection: None for full fine-tuning, VPT and AdaptFormer.
        placement: of modules.
        buffers: `spt.models.delta.kept_buffers` before training; what moves of them belongs to the task.
    """

    model: nn.Module
    selection: Selection | None
    placement: Placement
    buffers: dict[str, Tensor] = field(default_factory=dict)


def config_of(options: MethodOptions, fixed: tuple[str, ...]) -> SPTConfig:
    """The method's options as an `SPTConfig`."""
    same = {name: getattr(options, name) for name in ("budget", "structured_type", "alpha", "beta", "search", "init")}
    same |= {name: getattr(options, name) for name in ("structured_vector", "structured_only", "drop", "drop_path")}
    return SPTConfig(r=options.rank, fixed=fixed, **same)


def fixed_parameters(model: nn.Module) -> tuple[str, ...]:
    """The class token where there is one; Swin has none, and nothing takes its place in the cost."""
    return ("cls_token",) if any("cls_token" in name for name, _ in model.named_parameters()) else ()


def prepare_method(
    model: nn.Module,
    options: MethodOptions,
    measured: Sensitivities | None = None,
    images: Tensor | None = None,
) -> Tuned:
    """Applies the method to a pre-trained backbone with a fresh head, in place.

    Args:
        measured: sensitivities of this model, needed for `spt` without a selection or a file of sensitivities.
        images: (B, 3, H, W), a few of the task, to see that all that is counted gets a gradient.

    Raises:
        UserError: for options that do not fit the model, and for a layer that would be counted but not trained.
    """
    fixed = fixed_parameters(model)
    config = config_of(options, fixed)
    placement = config.placement()
    if options.name == "full":
        return Tuned(model.requires_grad_(True), None, placement)
    if options.name in ("vpt", "adaptformer"):
        if not hasattr(model, "blocks") or not fixed:
            raise UserError(f"{options.name} needs a ViT with a class token, not {type(model).__name__}")
        add = add_prompts if options.name == "vpt" else add_bottlenecks
        return Tuned(add(model, options.rank), None, placement)
    if options.name == "spt":
        if options.selection:
            shapes = find_candidates(model, HEAD, fixed).shapes()
            selection = read_selection(options.selection, config.rule(model), shapes)
        else:
            measured = load_sensitivities(Path(options.sensitivities)) if options.sensitivities else measured
            assert measured is not None, "spt needs sensitivities"
            selection = choose(model, config, measured)
    else:
        selection = uniform_selection(model, options, config.rule(model), fixed, images)
    buffers = {name: value.clone() for name, value in kept_buffers(model).items()}
    apply_selection(model, selection, placement, HEAD, fixed)
    if images is not None:
        refuse(model, probe(model, images))
    return Tuned(model, selection, placement, buffers)


def uniform_selection(
    model: nn.Module, options: MethodOptions, rule: Rule, fixed: tuple[str, ...], images: Tensor | None = None
) -> Selection:
    """Places that ignore the task: nothing (linear), biases (BitFit), LoRA on q and v, adapters behind the MLP.

    Args:
        images: as for `prepare_method`; what no gradient reaches (SETR's last norm) is not among the biases.
    """
    candidates = find_candidates(model, HEAD, fixed)
    unused = set(probe(model, images)) if images is not None and options.name == "bias" else set()
    shapes = candidates.shapes()
    modules, vectors = [], []
    for item in candidates:
        operation, leaf = item.name.split(".")[-2:]
        if options.name == "bias" and leaf == "bias" and item.holder not in unused:
            vectors.append(item.name)
        elif leaf == "weight" and item.kind == "matrix":
            chosen = {"lora": ("q", "v"), "adapter": ("fc2",)}.get(options.name, ())
            if operation in chosen:
                modules.append(item.name)
    kind = {"lora": "lora", "adapter": "adapter"}.get(options.name, rule.structured_type)
    uniform = Rule(kind, options.rank, fixed=rule.fixed)  # type: ignore[arg-type]
    return Selection(modules, vectors, {}, shapes, uniform)
