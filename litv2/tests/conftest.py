"""Makes sure that the tests import the installed package."""

import sys

import pytest

# Under pytest's importlib mode this file is `litv2.tests.conftest`, and pytest makes up a package `litv2` from the
# project's folder to put it in. The real one must take its place before a test imports it.
if getattr(sys.modules.get("litv2"), "__file__", None) is None:
    sys.modules.pop("litv2", None)

import litv2  # noqa: F401

pytest.register_assert_rewrite("made")  # its cases are tests of every engine
