"""Several texts to a row of fixed length, which see nothing of each other.

Legend of the shape suffixes: N rows, L tokens of a row.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.errors import UserError


class Example(NamedTuple):
    """A text, and what of it is to be learnt.

    Attributes:
        ids: token ids, integers [length].
        answers: bool [length], which tokens are targets: the model is to predict them from those before.
    """

    ids: Any
    answers: Any


class Fitted(NamedTuple):
    """Examples that fit into a row.

    Attributes:
        examples: those that have something to learn.
        kept: int64, the position of each in what was given.
        shortened: how many of them lost their end.
        dropped: how many had no target, or none within the length.
    """

    examples: list[Example]
    kept: np.ndarray
    shortened: int
    dropped: int


def fitted(examples: Iterable[Example], length: int) -> Fitted:
    """Examples cut to a length, without those that have no target left.

    Args:
        examples: of any length. The first token of one is never a target: nothing predicts it.
        length: tokens at most.

    Example:
        >>> found = fitted([Example([1, 2, 3], [0, 1, 1]), Example([1, 2, 3], [0, 0, 1])], length=2)
        >>> [example.ids.tolist() for example in found.examples], found.shortened, found.dropped
        ([[1, 2]], 1, 1)
    """
    kept, places, shortened, given = [], [], 0, 0
    for given, (ids, answers) in enumerate(examples, 1):
        ids, answers = np.asarray(ids, np.int32), np.asarray(answers, bool)
        if ids.shape != answers.shape or ids.ndim != 1:
            raise UserError(f"example {given - 1}: ids {list(ids.shape)}, answers {list(answers.shape)}; give one each")
        if answers[1:length].any():
            kept.append(Example(ids[:length], answers[:length]))
            places.append(given - 1)
            shortened += len(ids) > length
    return Fitted(kept, np.array(places, np.int64), shortened, given - len(kept))


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which items lie in which bin: each in the first bin that has room for it, else in a new one.

    Args:
        lengths: of the items, in the order in which they come.
        room: of a bin.

    Returns:
        for each bin its items. At most 1.7 times as many bins as any packing needs.

    Raises:
        UserError: an item is longer than a bin.

    Example:
        >>> first_fit([3, 2, 2, 1], room=4)
        [[0, 3], [1, 2]]

    Reference: Johnson et al. (1974), "Worst-case performance bounds for simple one-dimensional packing algorithms",
    SIAM J. Comput. 3(4); Dósa, Sgall (2013), "First fit bin packing: a tight analysis", for the bound.
    """
    free, bins = np.zeros(len(lengths), np.int64), []
    for item, size in enumerate(lengths):
        if size > room:
            raise UserError(f"packing: example {item} has {size} tokens, a row {room}; cut it with `fitted`")
        fits = free[: len(bins)] >= size
        place = int(fits.argmax()) if fits.any() else len(bins)
        if place == len(bins):
            bins.append([])
            free[place] = room
        bins[place].append(item)
        free[place] -= size
    return bins


def packed(examples: Sequence[Example], length: int, padding: int = 0) -> Batch:
    """Examples packed by `first_fit`, in their order.

    Args:
        examples: none longer than a row, see `fitted`.
        length: L, tokens of a row.
        padding: the id where a row has no more examples.

    Returns:
        arrays [N, L]: ``ids`` int32; ``segments`` int32, 1, 2, ... for a row's examples and 0 for padding: a decoder
        that is given them attends within an example alone; ``positions`` int32, 0, 1, ... anew for each example;
        ``answers`` bool, the targets. No example's first token is one: what comes before it belongs to another.

    Raises:
        UserError: there are no examples, or one is longer than a row.

    Example:
        >>> rows = packed([Example([5, 6], [0, 1]), Example([7, 8, 9], [1, 1, 1])], length=6)
        >>> for name in ("ids", "segments", "positions", "answers"):
        ...     print(name, rows[name].astype(int).tolist())
        ids [[5, 6, 7, 8, 9, 0]]
        segments [[1, 1, 2, 2, 2, 0]]
        positions [[0, 1, 0, 1, 2, 0]]
        answers [[0, 1, 0, 1, 1, 0]]

    Reference: Krell et al. (2021), "Efficient sequence packing without cross-contamination", arXiv:2107.02027.
    """
    return _rows(examples, first_fit([len(example.ids) for example in examples], length), length, padding)


def one_a_row(examples: Sequence[Example], length: int, padding: int = 0) -> Batch:
    """The arrays of `packed`, with one example a row.

    Example:
        >>> one_a_row([Example([5, 6], [0, 1])], length=3)["segments"].tolist()
        [[1, 1, 0]]
    """
    first_fit([len(example.ids) for example in examples], length)
    return _rows(examples, [[item] for item in range(len(examples))], length, padding)


def _rows(examples: Sequence[Example], bins: list[list[int]], length: int, padding: int) -> Batch:
    if not examples:
        raise UserError("packing: there are no examples; give at least one")
    shape = len(bins), length
    ids, answers = np.full(shape, padding, np.int32), np.zeros(shape, bool)
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, items in enumerate(bins):
        start = 0
        for number, item in enumerate(items, 1):
            end = start + len(examples[item].ids)
            ids[row, start:end], segments[row, start:end] = examples[item].ids, number
            positions[row, start:end] = np.arange(end - start)
            answers[row, start + 1 : end] = examples[item].answers[1:]
            start = end
    return {"ids": ids, "segments": segments, "positions": positions, "answers": answers}
