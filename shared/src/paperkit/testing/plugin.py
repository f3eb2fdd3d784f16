"""The pytest plugin of every suite: `-p paperkit.testing.plugin` in the options of its pyproject.

Fixtures: `one_thread` in every test by itself; `others_folder`. Helpers stand in `commands` (a paper's command, warm
children), `runs` (two run folders compared), `golden` (reference files and loss traces), `verbs` (what every paper's
`train` and `eval` must do) and `made_images`.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    *(f"paperkit.testing.{name}" for name in ("commands", "runs", "golden", "verbs"))
)  # before they are imported: their assertions say what differs


@pytest.fixture(autouse=True, scope="session")
def one_thread_from_the_start() -> None:
    """For what fixtures of a module or the session compute before the first test."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One thread and one seed: sums of floats depend on how many share the work."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def others_folder() -> Iterator[Path]:
    """A folder that a child run as `nobody` may read and not write; pytest's own lets no other user in.

    Skips the test for a root whose checkout lies in a folder of his alone: there the child could import nothing.
    """
    code = Path(__file__).resolve()
    if os.getuid() == 0 and not all(folder.stat().st_mode & stat.S_IXOTH for folder in code.parents):
        pytest.skip("the code lies in a folder that no other user may enter")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755 if os.getuid() == 0 else 0o555)
        yield path
        path.chmod(0o755)
