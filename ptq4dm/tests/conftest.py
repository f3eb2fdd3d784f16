"""Makes sure that the tests import the installed package."""

import sys

# Under pytest's importlib mode this file is `ptq4dm.tests.conftest`, and pytest makes up a package `ptq4dm` from
# the project's folder to put it in. The real one must take its place before a test imports it.
if getattr(sys.modules.get("ptq4dm"), "__file__", None) is None:
    sys.modules.pop("ptq4dm", None)

import ptq4dm  # noqa: F401
