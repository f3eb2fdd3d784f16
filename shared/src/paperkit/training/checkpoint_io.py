"""Lightning's checkpoints, written whole or not at all.

Lightning's own writer keeps its temporary file in the system's temporary folder: where that is another file system, a
full disk destroys the checkpoint that was to be replaced. In a folder that cannot be written it returns without a
word and without a file. This plugin does neither.
"""

import os
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from paperkit.errors import UserError
from paperkit.files.weights import read_checkpoint, save_checkpoint
from paperkit.training.last_good import describe_newest_good


class AtomicCheckpointIO(TorchCheckpointIO):
    """Give it to the Trainer: ``Trainer(plugins=[AtomicCheckpointIO()])``. For folders of the local file system.

    Files are sealed with a checksum and read with ``weights_only=True``, unless ``fit(weights_only=False)`` says
    otherwise.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Replaces the file at ``path``, or leaves it as it was.

        Raises:
            UserError: ``cannot write <path>: <reason>; last good checkpoint: <path> (step N)``.
            TypeError: for ``storage_options``, which belong to remote folders.
        """
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes to local folders, where storage_options mean nothing")
        try:
            save_checkpoint(path, checkpoint)
        except UserError as error:
            raise UserError(f"{error}; last good checkpoint: {describe_newest_good([Path(path).parent])}") from error

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content of ``path`` on the CPU, from where Lightning copies it to its place.

        Raises:
            UserError: as `paperkit.files.weights.read_checkpoint`.
        """
        content = read_checkpoint(path, trust_pickle=weights_only is False)
        if not isinstance(content, dict) or "state_dict" not in content:
            raise UserError(f"{path} is no checkpoint of a run: it holds no state_dict")
        return content
