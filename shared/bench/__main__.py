"""`python shared/bench VERB`: what the kit measures about itself; not part of the wheel."""

import sys

from paperkit.command.cli import Verb, main

VERBS = {
    "savings": Verb("what each of the survey's savings is worth on this machine", "savings"),
    "guarantees": Verb("what the kit's guarantees cost, as ratios of one run", "guarantees"),
}

if __name__ == "__main__":
    sys.exit(main("shared/bench", "What paperkit measures about itself.", VERBS))
