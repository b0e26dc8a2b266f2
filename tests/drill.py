"""Attacks that are made a few times in a test and many times in a drill: `python -m benchmarks.drill`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Drill:
    """How often, and with which random numbers.

    Attributes:
        seed: of a drill; None in a test.
        note: called with what was done and how often, for the drill's table.
    """

    seed: int | None
    note: Callable[[str, int], None]

    def choose(self, few: int, many: int) -> int:
        """How many times."""
        return few if self.seed is None else many

    def draw(self) -> random.Random:
        """Random numbers, the same ones at each call."""
        return random.Random(self.seed or 0)


def damage(content: bytes, rng: random.Random, pieces: Sequence[bytes] = (b"",)) -> bytes:
    """Some bytes replaced, cut out, put in, or all behind some place cut off; at least one of them."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 2, 4, 16])):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            changed[at : at + 1] = rng.randbytes(1)
        elif kind == 1:
            changed[at:at] = rng.randbytes(rng.choice([1, 3, 50]))
        elif kind == 2:
            del changed[at : at + rng.choice([1, 5, 200])]
        else:
            changed[at:at] = rng.choice(pieces)
    return bytes(changed[: rng.randrange(len(changed) + 1)] if rng.random() < 0.1 else changed)
