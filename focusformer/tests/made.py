"""What the tests share: the command, and settings of an embedded experiment of seconds."""

from typing import Any

from paperkit.testing.commands import Command

focusformer = Command("focusformer", "focusformer.cli:main", preload=("focusformer.experiment.run",))
TINY: dict[str, Any] = dict(seeds=1, steps=60, batch_size=16, evaluations=32, alone=2, alone_steps=20, processes=1)
"""An embedded experiment of seconds; its claims mean nothing."""
