"""The fit within a training step: under activation checkpointing, and in several processes."""

import copy
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

from ecoformer.method.attention import EcoFormerAttention
from ecoformer.method.hash_fit import FitOptions


def test_a_checkpointed_block_may_fit() -> None:
    """The block that fits on its first pass fits nothing when it is computed again; the gradients are the same."""
    torch.manual_seed(0)
    plain, x = EcoFormerAttention(16, 2, 7, 5, fit=FitOptions(topk=4, iterations=3)), torch.randn(2, 24, 16)
    again = copy.deepcopy(plain)
    torch.manual_seed(1)  # the supports that are drawn
    plain(x).square().sum().backward()
    torch.manual_seed(1)
    checkpoint(again, x, use_reentrant=False).square().sum().backward()
    assert again.ksh.is_fitted and torch.equal(plain.ksh.A, again.ksh.A)
    for one, two in zip(plain.parameters(), again.parameters(), strict=True):
        assert one.grad is not None and torch.equal(one.grad, two.grad)


SCRIPT = """
import sys, torch
from ecoformer.method.attention import EcoFormerAttention
from ecoformer.method.hash_fit import FitOptions
from paperkit.errors import UserError

rank, place = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
torch.manual_seed(rank)
for tokens in ((24, 3), (3, 24)):  # of the two processes: 3 are fewer than the supports
    layer = EcoFormerAttention(16, 2, 7, 5, fit=FitOptions(topk=3, iterations=3))
    try:
        layer(torch.randn(2, tokens[rank], 16))
        print(layer.ksh.is_fitted, layer.ksh.A.sum().item(), layer.ksh.anchor.sum().item())
    except UserError as error:
        print(error, error.everywhere, layer.ksh.is_fitted)
"""


def test_processes_share_the_first_ones_fit_or_its_failure(tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "meeting")], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        one, two = (process.communicate(timeout=60)[0].splitlines() for process in started)
    finally:
        for process in started:
            process.kill()
    assert one == two and one[0].startswith("True ")
    assert "the first sample has 3 tokens and the hash 5 supports" in one[1] and one[1].endswith("True False")
