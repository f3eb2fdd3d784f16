"""YAML settings read as plain data, within bounds: a config can neither run anything nor fill the memory."""

import os
from typing import Any

import yaml

from paperkit.errors import UserError

LARGEST_FILE = 1 << 20
"""Bytes of the largest config that is read."""
MOST_NODES = 100_000
"""Values of the largest config that is read, every alias counted as often as it is used."""
DEEPEST = 100
"""Levels of the most deeply nested config that is read."""


def read_settings(path: str | os.PathLike[str], what: str = "config") -> dict[str, Any]:
    """The options in a YAML file, as plain values.

    Args:
        what: how a message calls the file.

    Raises:
        UserError: if the file is missing, unreadable, no YAML, no mapping of options, or larger than a config is.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(LARGEST_FILE + 1)
        if len(raw) > LARGEST_FILE:
            raise UserError(f"the {what} {path} is larger than {LARGEST_FILE >> 20} MiB: that is no file of options")
        root = yaml.compose(raw.decode("utf-8-sig"), Loader=yaml.SafeLoader)
        if root is not None:
            _check_size(root, path, what)
        content = None if root is None else yaml.SafeLoader("").construct_document(root)
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"cannot read the {what} {path}: it is not YAML: {reason}") from error
    if content is None and what == "config":
        return {}  # a file of comments alone
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"the {what} {path} is not a mapping of options")
    return content


def _check_size(root: yaml.Node, path: str | os.PathLike[str], what: str) -> None:
    """Counts values as if every alias were written out, in time that grows with the file alone."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if id(node) in open_nodes:
            raise UserError(f"the {what} {path} has an alias that holds itself")
        if depth > DEEPEST:
            raise UserError(f"the {what} {path} is nested more than {DEEPEST} levels deep")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                children = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                children = list(node.value)
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in children)
            open_nodes.discard(id(node))
        return sizes[id(node)]

    if size(root, 0) > MOST_NODES:
        raise UserError(f"the {what} {path} holds more than {MOST_NODES:,} values, its aliases written out")
