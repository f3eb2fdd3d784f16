"""One thread in every test: sums of floats depend on how many share the work."""

import sys

# Under pytest's importlib mode this file is `litv2.tests.conftest`, and pytest makes up a package `litv2` from the
# project's folder to put it in. The real one must take its place before a test imports it.
if getattr(sys.modules.get("litv2"), "__file__", None) is None:
    sys.modules.pop("litv2", None)

import pytest
import torch

import litv2  # noqa: F401


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
