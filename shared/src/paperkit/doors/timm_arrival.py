"""Fill timm's registry without importing timm: at once if it is loaded, else right after somebody loads it."""

from paperkit.doors.arrival import when_arrives


def when_timm_arrives(module: str) -> None:
    """Import `module` (which registers models) now or when `timm.models` is imported."""
    when_arrives("timm.models", module)
