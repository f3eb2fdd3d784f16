"""timm's way to name stages of a network, for networks that must not import timm while it fills its registry."""

from paperkit.errors import UserError


def stage_indices(stages: int, indices: int | list[int] | None) -> list[int]:
    """Which stages are meant: all for None, the last n for a number, else those listed (negative: from the end).

    Raises:
        UserError: a stage that is not there.
    """
    if indices is None:
        return list(range(stages))
    listed = list(range(stages - indices, stages)) if isinstance(indices, int) else list(indices)
    if not listed or not all(-stages <= i < stages for i in listed):
        raise UserError(
            f"indices {indices} do not name stages of {stages}; they are 0 to {stages - 1}, or negative from the end"
        )
    return [i % stages for i in listed]
