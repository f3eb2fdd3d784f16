"""Sensitivities on disk, with the identity of the model they were measured on, so that they are reused and not mixed
up."""

from __future__ import annotations

import json
from pathlib import Path

from paperkit.errors import UserError
from paperkit.files.weights import read_metadata, read_weights, save_weights
from spt.method.sensitivity import Sensitivities, check_values


def save_sensitivities(path: str | Path, sensitivities: Sensitivities) -> None:
    """Writes a safetensors file; order and identity stand in its metadata."""
    order = json.dumps(list(sensitivities.values))
    save_weights(path, sensitivities.values, {"identity": json.dumps(sensitivities.identity), "order": order})


def load_sensitivities(path: str | Path) -> Sensitivities:
    """Reads what :func:`save_sensitivities` wrote.

    Raises:
        UserError: for a file that is missing, damaged, or holds no sensitivities.
    """
    tensors = read_weights(path)
    metadata = read_metadata(path)
    if "identity" not in metadata or "order" not in metadata:
        raise UserError(f"{path} holds no sensitivities: its metadata has no identity")
    order = json.loads(metadata["order"])
    if set(order) != set(tensors):
        raise UserError(f"{path}: order and tensors do not agree")
    values = {name: tensors[name] for name in order}
    check_values(values)
    return Sensitivities(values, json.loads(metadata["identity"]))
