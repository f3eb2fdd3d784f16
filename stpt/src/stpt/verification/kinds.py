"""How each kind of reference file is recomputed: the table behind `stpt verify FILE...`."""

from paperkit.verification.verify import Kind
from stpt.verification import detector, evaluation, layers, losses, windows

KINDS: dict[str, Kind] = {
    **layers.KINDS,
    **detector.KINDS,
    **losses.KINDS,
    **evaluation.KINDS,
    **windows.KINDS,
}
