"""``python -m paperkit bench``: the one thing that the kit does by itself."""

import sys

from paperkit.cli import Verb, main

VERBS = {"bench": Verb("what the kit's guarantees cost, as ratios of one run", "paperkit.guarantees")}

if __name__ == "__main__":
    sys.exit(main("python -m paperkit", "paperkit: the kit beneath the papers", VERBS))
