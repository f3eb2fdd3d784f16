"""``python -m paperkit bench``: what the kit measures about itself."""

import sys

from paperkit.command.cli import Verb, main

VERBS = {
    "bench": Verb("what each of the survey's savings is worth on this machine", "paperkit.savings_bench"),
    "guarantees": Verb("what the kit's guarantees cost, as ratios of one run", "paperkit.guarantees"),
}

if __name__ == "__main__":
    sys.exit(main("python -m paperkit", "paperkit: the kit beneath the papers", VERBS))
