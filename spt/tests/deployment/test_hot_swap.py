"""Switching between deltas on one backbone: exact, also after many switches."""

from pathlib import Path

import pytest
import torch
from made import batches, same_bits, tiny_vit, tuned

from paperkit.errors import UserError
from spt import HotSwap
from spt.models.delta import load_delta

KINDS = ["lora", "adapter", "none"]


def test_hot_swap_is_exact_over_many_switches(tmp_path: Path) -> None:
    models = {kind: tuned(kind, seed=i) for i, kind in enumerate(KINDS)}
    plain, images = tiny_vit(), batches()[0][0]
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    swap = HotSwap(plain)
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        swap.add(name, load_delta(tmp_path / name))
    with torch.no_grad():
        for name in ["lora", "adapter", "none", "lora", None, "none", "adapter", "lora"]:
            out = swap.switch(name)(images)
            expected = tiny_vit().eval()(images) if name is None else models[name](images)
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    swap.switch(None)
    assert same_bits(plain, before)
    with pytest.raises(UserError, match="no delta named sun"):
        swap.switch("sun")
