"""The energy ledger beside the accuracies: part B's networks at their own 16 tokens and at 3136, and PVTv2-B0."""

from functools import partial

from ecoformer.experiment.networks import DigitNetwork, Hashed
from ecoformer.experiment.settings import ECO, SHARED
from ecoformer.method.energy import ledger
from ecoformer.models.architectures import build

SIDES = {16: 8, 3136: 112}
"""Tokens -> side of the image in pixels."""
PVT = {"EcoFormer": "pvt_v2_b0_ecoformer", "MSA": "pvt_v2_b0_msa", "SRA, the unmodified network": "pvt_v2_b0_sra"}


def energies(hashed: Hashed) -> dict[str, dict[str, float]]:
    """What is counted -> arm -> nJ of one image: attention alone and whole networks, by the released script's count."""
    found: dict[str, dict[str, float]] = {}
    for tokens, side in SIDES.items():
        for arm in (SHARED, ECO):
            book = ledger(partial(DigitNetwork, arm, hashed, side), (1, side, side))
            found.setdefault(f"attention at {tokens} tokens", {})[arm] = book.attention.energy_pj() / 1e3
            found.setdefault(f"whole network at {tokens} tokens", {})[arm] = book.total.energy_pj() / 1e3
    found["PVTv2-B0 at 224 px"] = {
        arm: ledger(partial(build, name)).total.energy_pj() / 1e3 for arm, name in PVT.items()
    }
    return found
