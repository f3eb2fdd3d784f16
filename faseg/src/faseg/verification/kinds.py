"""How each kind of reference file is recomputed: the table behind `faseg verify FILE...`."""

from faseg.verification import criterion, decoder, networks
from paperkit.verification.verify import Kind

KINDS: dict[str, Kind] = {**decoder.KINDS, **networks.KINDS, **criterion.KINDS}
