"""Every kind of reference file that `snnet verify` knows."""

from paperkit.verify import Kind
from snnet.reference import KINDS as PLAIN_KINDS
from snnet.reference_staged import STAGED_KINDS

KINDS: dict[str, Kind] = {**PLAIN_KINDS, **STAGED_KINDS}
