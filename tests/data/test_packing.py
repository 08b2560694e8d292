"""Rows of several examples: nothing is lost, nothing mixed."""

import numpy as np
import pytest

from jaxbig.data import Example, first_fit, fitted, one_a_row, packed
from jaxbig.errors import UserError


def examples(count=40, most=20, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, most + 1, count)
    return [Example(rng.integers(1, 99, n), rng.integers(0, 2, n).astype(bool)) for n in sizes]


def test_each_item_lies_in_the_first_bin_with_room():
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes, room = rng.integers(0, 12, rng.integers(1, 40)), 12
        bins: list[list[int]] = []
        for item, size in enumerate(sizes):  # the definition, a bin at a time
            place = next((own for own in bins if sum(sizes[i] for i in own) + size <= room), None)
            if place is None:
                bins.append(place := [])
            place.append(item)
        assert first_fit(sizes, room) == bins


def test_every_token_is_there_once_in_its_place():
    given = examples()
    rows = packed(given, 32, padding=7)
    found = []
    for ids, segments, positions, answers in zip(*rows.values(), strict=True):
        for number in range(1, segments.max() + 1):
            own = segments == number
            np.testing.assert_array_equal(positions[own], np.arange(own.sum()))
            found.append((ids[own].tolist(), answers[own].tolist()))
        assert (np.diff(np.flatnonzero(segments)) == 1).all()
        assert (ids[segments == 0] == 7).all()
        assert not answers[segments == 0].any()
    expected = [(each.ids.tolist(), [False, *each.answers[1:].tolist()]) for each in given]
    assert sorted(found) == sorted(expected)
    assert {name: array.dtype.name for name, array in rows.items()} == {
        "ids": "int32", "segments": "int32", "positions": "int32", "answers": "bool",
    }  # fmt: skip


def test_one_a_row_is_packing_without_company():
    given = examples(5)
    rows = one_a_row(given, 20)
    alone = [packed([each], 20) for each in given]
    for name, array in rows.items():
        np.testing.assert_array_equal(array, np.concatenate([each[name] for each in alone]))


def test_what_is_cut_and_left_out_is_counted():
    given = [
        Example([1, 2, 3, 4], [0, 0, 1, 1]),
        Example([1, 2, 3, 4], [0, 0, 0, 1]),
        Example([1, 2], [1, 0]),  # nothing comes before its only target
        Example([1, 2], [0, 1]),
    ]
    found = fitted(given, 3)
    assert [each.ids.tolist() for each in found.examples] == [[1, 2, 3], [1, 2]]
    assert (found.kept.tolist(), found.shortened, found.dropped) == ([0, 3], 1, 2)


def test_what_does_not_fit_is_told():
    with pytest.raises(UserError, match="example 1 has 5 tokens, a row 4"):
        packed([Example([1], [0]), Example(range(5), [0] * 5)], 4)
    with pytest.raises(UserError, match="example 0 has 5 tokens"):
        one_a_row([Example(range(5), [0] * 5)], 4)
    with pytest.raises(UserError, match="there are no examples"):
        packed([], 4)
    with pytest.raises(UserError, match=r"example 0: ids \[2\], answers \[3\]"):
        fitted([Example([1, 2], [0, 1, 1])], 4)
