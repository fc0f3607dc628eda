"""Which tokens are predicted and in which order: pure functions of tokens and generator.

As zihangdai/xlnet, data_utils.py (Yang et al. 2019, sections 2.3 and 2.4; its lines in brackets). With the same draws
`places_and_ranks` makes the mask of its _local_perm, bit for bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def spans(begins: Bools, wanted: int, every: int, longest: int, rng: np.random.Generator) -> Bools:
    """begins: bool [length], True where a word begins -> bool [length], `wanted` of them True: spans of n tokens, n
    from 1 to `longest` with probability proportional to 1/n, each within n x `every` tokens of its own.

    What their _sample_mask does [340-388]: a span begins with a word and has n *tokens*, since it asks of the first one
    alone whether a word begins there; a span that would reach the end is not made, and ends the search; what is then
    missing is filled with single tokens in any place.
    """
    chosen, length = np.zeros(len(begins), bool), len(begins)
    sizes = np.arange(1, longest + 1)
    odds = 1.0 / sizes
    at, left = 0, wanted
    while at < length and left > 0:
        size = min(int(rng.choice(sizes, p=odds / odds.sum())), left)
        before = int(rng.integers(size * every))
        following = np.flatnonzero(begins[at + before :])
        if not len(following) or at + before + following[0] + size >= length:
            break
        start = at + before + int(following[0])
        chosen[start : start + size] = True
        left -= size
        at = start + size + size * every - before
    while left > 0:
        place = int(rng.integers(length))
        left -= not chosen[place]
        chosen[place] = True
    return chosen


def order_of(length: int, size: int, rng: np.random.Generator) -> Ints:
    """-> int64 [length], the place of each token in the factorization order: one permutation of `size` places, the same
    in each run of `size` tokens, one run after the other [595-598]."""
    return (np.arange(0, length, size)[:, None] + rng.permutation(size)).reshape(-1)


def places_and_ranks(order: Ints, chosen: Bools, functional: Bools) -> tuple[Ints, Ints, Ints]:
    """order: int64 [length], see order_of; chosen, functional: bool [length], True for a token to predict, and for a
    [sep] or [cls], which is none -> (places, ranks), int64 [length], see models.xlnet.model.in_order, and the targets,
    ascending.

    Tokens that are not chosen are seen by all [612-622]; a target does not see itself, a functional token does [633].
    """
    hidden = chosen | functional
    targets = chosen & ~functional
    places = np.where(hidden, order, -1)
    return places, np.where(targets, places, places + 1), np.flatnonzero(targets)
