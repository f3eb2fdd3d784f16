"""Makes sure that the tests import the installed package."""

import sys

# Under pytest's importlib mode this file is `bivit.tests.conftest`, and pytest makes up a package `bivit` from
# the project's folder to put it in. The real one must take its place before a test imports it.
if getattr(sys.modules.get("bivit"), "__file__", None) is None:
    sys.modules.pop("bivit", None)

import bivit  # noqa: F401
