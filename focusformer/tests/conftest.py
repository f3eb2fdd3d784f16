"""Makes sure that the tests import the installed package."""

import sys

# Under pytest's importlib mode this file is `focusformer.tests.conftest`, and pytest makes up a package `focusformer`
# from the project's folder to put it in. The real one must take its place before a test imports it.
if getattr(sys.modules.get("focusformer"), "__file__", None) is None:
    sys.modules.pop("focusformer", None)

import focusformer  # noqa: F401
