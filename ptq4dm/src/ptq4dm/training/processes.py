"""The processes of one run, as torchrun starts them: they share the sampling, and the first does all else."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from paperkit.errors import UserError

LONGEST = timedelta(days=14)
"""The others wait while the first reconstructs."""


@dataclass(frozen=True)
class Processes:
    """Which of how many this one is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether it writes what there is one of."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when every process is here."""
        if self.count > 1:
            dist.barrier()


def join() -> Processes:
    """The processes that the environment tells of, connected by gloo; one alone without a launcher.

    Raises:
        UserError: variables of a launcher that are no numbers, or no connection.
    """
    try:
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return Processes()
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=LONGEST)
        return Processes(dist.get_rank(), count)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes of this run cannot be connected: {error}") from error


def leave() -> None:
    """Ends the connection."""
    if dist.is_initialized():
        dist.destroy_process_group()
