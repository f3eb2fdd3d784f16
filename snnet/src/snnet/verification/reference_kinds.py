"""Every kind of reference file that `snnet verify` knows."""

from paperkit.verification.verify import Kind
from snnet.verification.kinds import KINDS as PLAIN_KINDS
from snnet.verification.staged import STAGED_KINDS

KINDS: dict[str, Kind] = {**PLAIN_KINDS, **STAGED_KINDS}
