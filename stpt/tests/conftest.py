"""Makes sure that the tests import the installed package."""

import sys

# Under pytest's importlib mode this file is `stpt.tests.conftest`, and pytest makes up a package `stpt` from
# the project's folder to put it in. The real one must take its place before a test imports it.
if getattr(sys.modules.get("stpt"), "__file__", None) is None:
    sys.modules.pop("stpt", None)

import stpt  # noqa: F401
