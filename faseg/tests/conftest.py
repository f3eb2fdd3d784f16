"""Makes sure that the tests import the installed package."""

import sys

# Under pytest's importlib mode this file is `faseg.tests.conftest`, and pytest makes up a package `faseg` from
# the project's folder to put it in. The real one must take its place before a test imports it.
if getattr(sys.modules.get("faseg"), "__file__", None) is None:
    sys.modules.pop("faseg", None)

import faseg  # noqa: F401
