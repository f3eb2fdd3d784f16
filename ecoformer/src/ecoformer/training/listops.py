"""ListOps of the Long Range Arena: nested list operations on digits, made by the released generator's order of draws.

With Python's `random` seeded alike, the examples are those of the released script (duplicates left out, in the order
of acceptance).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from paperkit.errors import UserError

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
CLOSE = "X"
VOCABULARY = (*"0123456789", *OPERATORS, CLOSE)
"""Token i of a sequence has the number i + 1; 0 is padding."""
NUMBERS = {token: i + 1 for i, token in enumerate(VOCABULARY)}
VALUE_SHARE = 0.25
Tree = int | tuple[str, list["Tree"]]


@dataclass(frozen=True)
class ListOpsOptions:
    """Which trees are kept.

    Args:
        max_depth, max_args: of a tree. The Long Range Arena's are 10 and 10.
        min_length, max_length: tokens of a kept tree lie strictly between them; 500 and 2000 in the arena.
    """

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000

    def __post_init__(self) -> None:
        if self.max_depth < 1 or self.max_args < 2 or self.max_length - self.min_length < 2:
            raise UserError(
                f"no ListOps tree has depth {self.max_depth}, {self.max_args} arguments and more than "
                f"{self.min_length} and fewer than {self.max_length} tokens"
            )


SHORT = ListOpsOptions(5, 5, 10, 64)
"""A setting that trains in minutes: mean length 25, labels nearly uniform."""


@dataclass(frozen=True)
class Example:
    """One kept tree: its tokens joined by spaces, how many, its value, and its text in nested brackets."""

    tokens: str
    length: int
    target: int
    source: str = field(repr=False)


def draw_tree(draw: random.Random, options: ListOpsOptions, depth: int = 1) -> tuple[Tree, int]:
    """A tree and its number of tokens."""
    share = draw.random() if depth < options.max_depth else 1.0
    if share > VALUE_SHARE:
        return draw.choice(range(10)), 1
    children, length = [], 2
    for _ in range(draw.randint(2, options.max_args)):
        child, size = draw_tree(draw, options, depth + 1)
        children.append(child)
        length += size
    return (draw.choice(OPERATORS), children), length


def value_of(tree: Tree) -> int:
    """MIN, MAX, MED (the mean of the middle two, cut off) or SM (sum modulo 10), from the leaves up."""
    if isinstance(tree, int):
        return tree
    operator, values = tree[0], [value_of(child) for child in tree[1]]
    if operator == "[MIN":
        return min(values)
    if operator == "[MAX":
        return max(values)
    return int(median(values)) if operator == "[MED" else sum(values) % 10


def tokens_of(tree: Tree) -> list[str]:
    """The tree as the model reads it: without round brackets, `X` for the closing one."""
    if isinstance(tree, int):
        return [str(tree)]
    return [tree[0], *(token for child in tree[1] for token in tokens_of(child)), CLOSE]


def source_of(tree: Tree) -> str:
    """The tree in the released files' binary brackets: `( ( ( [OP a ) b ) ] )`."""
    if isinstance(tree, int):
        return str(tree)
    inner = tree[0]
    for child in tree[1]:
        inner = f"( {inner} {source_of(child)} )"
    return f"( {inner} ] )"


def parse(text: str) -> Tree:
    """A tree from tokens or from a source in brackets.

    Raises:
        UserError: unknown tokens, or brackets that do not match.
    """
    tokens = text.replace("(", " ").replace(")", " ").replace("]", f" {CLOSE} ").split()
    open_lists: list[tuple[str, list[Tree]]] = []
    for place, token in enumerate(tokens):
        if token in OPERATORS:
            open_lists.append((token, []))
            continue
        if token == CLOSE and open_lists and open_lists[-1][1]:
            tree: Tree = open_lists.pop()
        elif token.isdigit() and len(token) == 1:
            tree = int(token)
        else:
            raise UserError(f"'{token[:20]}' as token {place} is no ListOps text")
        if open_lists:
            open_lists[-1][1].append(tree)
        elif place == len(tokens) - 1:
            return tree
        else:
            break
    raise UserError("the brackets of the ListOps text do not match")


def trees(seed: int, options: ListOpsOptions) -> Iterator[tuple[Tree, int]]:
    """All trees in the order of the draws, kept or not."""
    draw = random.Random(seed)
    while True:
        yield draw_tree(draw, options)


def examples(seed: int, options: ListOpsOptions) -> Iterator[Example]:
    """Kept trees without end, each once."""
    seen: set[str] = set()
    for tree, length in trees(seed, options):
        if options.min_length < length < options.max_length:
            source = source_of(tree)
            if source not in seen:
                seen.add(source)
                yield Example(" ".join(tokens_of(tree)), length, value_of(tree), source)


def encode(tokens: str) -> list[int]:
    """Numbers of a text's tokens, from 1 on.

    Raises:
        UserError: a token that is not in the vocabulary.
    """
    try:
        return [NUMBERS[token] for token in tokens.split()]
    except KeyError as error:
        raise UserError(f"{error} is not one of the {len(VOCABULARY)} tokens of ListOps") from None
