"""Where the state dict stands in a checkpoint: files of many programs, and which part of them is meant.

Weights stand under `state_dict` (Lightning, mmengine, timm) or `model` (DeiT, Swin, detectron2); those two go before
any other. Else they stand under whatever key has the only state dict of the file: `module` (DeepSpeed), `net`,
`model_state_dict`, `model_ema`, `teacher`. With several such keys the user says which.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.bounded import PathLike
from paperkit.files.keys import first_few

ESTABLISHED = ("state_dict", "model")
"""Keys that are taken whatever stands beside them."""
BESIDE = re.compile(
    r"optim|sched|scaler|amp$|rng|random|callback|loop|hyper|args|config|cfg|meta|loss|metric|history|epoch|logs?$",
    re.IGNORECASE,
)
"""Keys of what training keeps beside weights; a part may still be named so."""
DEEPEST = 4
"""Levels of containers that are looked through."""
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def find_state(
    content: Any, path: PathLike, part: str | None = None, part_advice: str | None = None
) -> dict[str, Tensor]:
    """The state dict in the content of a checkpoint.

    Args:
        content: of the file. path: of the file, for messages.
        part, part_advice: as in `paperkit.files.weights.read_weights`.

    Raises:
        UserError: if there is none, or several that are equally good; with what the file holds.
    """
    if part is not None:
        content = _part(content, part, path)
    before = f"{part}." if part else ""
    for _ in range(DEEPEST):
        content = content.state_dict() if isinstance(content, nn.Module) else content
        if not isinstance(content, Mapping):
            raise UserError(f"{path} holds no weights but a {type(content).__name__}")
        if _is_state(content):
            return dict(content)
        established = next((key for key in ESTABLISHED if isinstance(content.get(key), Mapping | nn.Module)), None)
        if established is None:
            break
        content, before = content[established], f"{before}{established}."
    # A dict with tensors of its own is a state dict with something odd in it, not a container of some.
    tensors = isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values())
    found = {} if tensors else dict(_states(content, before))
    if len(found) == 1:
        return find_state(next(iter(found.values())), path)
    if found:
        names = ", ".join(f"{name[:60]} ({_count(value)} tensors)" for name, value in [*found.items()][:6])
        choose = f"choose one with {part_advice or 'part='}{' ' if part_advice else ''}{next(iter(found))[:60]}"
        raise UserError(f"{path} holds {len(found)} state dicts: {names}; {choose}")
    strangers = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    raise UserError(f"{path} holds no state dict; beside tensors it has {first_few(strangers) or 'nothing'}")


def _is_state(content: Any) -> bool:
    """Whether it is a state dict: names and tensors, nothing else, and at least one."""
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _states(content: Any, before: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every state dict below a container, with the keys that lead to it, joined by dots.

    A container with an established key is one state dict, whatever else it holds.
    """
    if depth > DEEPEST or not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if not isinstance(key, str) or BESIDE.search(key):
            continue
        if isinstance(value, nn.Module) or _is_state(value):
            yield before + key, value
        elif isinstance(value, Mapping):
            inner = next((value[k] for k in ESTABLISHED if isinstance(value.get(k), Mapping | nn.Module)), None)
            if inner is not None:
                yield before + key, value
            else:
                yield from _states(value, f"{before}{key}.", depth + 1)


def _count(value: Any) -> int:
    """Tensors of a state dict or of the one in an established place of it."""
    for _ in range(DEEPEST):
        value = value.state_dict() if isinstance(value, nn.Module) else value
        key = next((k for k in ESTABLISHED if isinstance(value.get(k), Mapping | nn.Module)), None)
        if key is None:
            break
        value = value[key]
    return sum(isinstance(entry, Tensor) for entry in value.values()) if isinstance(value, Mapping) else 0


def _part(content: Any, part: str, path: PathLike) -> Any:
    """What stands under a key, or under keys joined by dots."""
    whole, rest = content, part
    while rest:
        keys = [key for key in content if isinstance(key, str)] if isinstance(content, Mapping) else []
        fitting = [key for key in keys if rest == key or rest.startswith(f"{key}.")]
        if not fitting:
            names = [name for name, _ in _states(whole)]
            held = first_few(names) if names else "one state dict" if _is_state(whole) else "none"
            raise UserError(f"{path} holds no part {part!r}; the parts that it holds: {held}")
        key = max(fitting, key=len)
        content, rest = content[key], rest[len(key) + 1 :]
    return content


def without_prefixes(state: dict[str, Tensor], path: PathLike) -> dict[str, Tensor]:
    """`state` under the keys of the bare network.

    Raises:
        UserError: if two keys differ in a prefix alone.
    """
    named = {key: WRAPPERS.sub("", key) for key in state}
    if "n_averaged" in named.values() and len(named) > 1:  # torch's AveragedModel counts beside its module
        rest = {key: new for key, new in named.items() if new != "n_averaged"}
        named = rest if all(new.startswith("module.") for new in rest.values()) else named
    while all(new.startswith("module.") for new in named.values()):
        named = {key: new.removeprefix("module.") for key, new in named.items()}
    if len(set(named.values())) < len(named):
        raise UserError(f"{path} holds one weight twice, with and without a wrapper's prefix")
    return {new: state[key] for key, new in named.items()}
