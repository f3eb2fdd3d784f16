"""Random numbers as a function of (seed, place in the run), for code that needs no data loader."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*parts: int) -> int:
    """A seed in [0, 2**63) that depends on every one of `parts` and on their order.

    It is the front of BLAKE2b over the decimal numbers: the same on every machine, for every Python and for ever, and
    without the collisions of sums such as `seed + epoch`. `torch` and `random` take it whole, numpy its low 32
    bits.
    """
    text = ",".join(str(int(part)) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def seed_generators(*parts: int) -> int:
    """Seeds the global CPU generators of torch, numpy and `random` with `seed_of(*parts)`, and returns it."""
    seed = seed_of(*parts)
    # torch.manual_seed would cost ten times as much, because it visits every kind of device.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
    return seed


@contextmanager
def generators_kept() -> Iterator[None]:
    """Puts the global CPU generators of torch, numpy and `random` back when the block is left."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
