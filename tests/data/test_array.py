"""Datasets in memory: order, sizes, k-shot and stratified splits."""

import numpy as np
import pytest

from jaxbig.data import k_shot, order, size_of, split_fraction
from jaxbig.errors import UserError


def test_order_is_a_permutation_fixed_for_all_time():
    # The numbers are pinned: a change would silently change every run that somebody has published.
    assert order(8, seed=3, epoch=2).tolist() == [2, 3, 6, 4, 1, 7, 5, 0]
    assert sorted(order(1000, 0, 0).tolist()) == list(range(1000))


def test_k_shot_is_balanced_nested_and_seeded():
    labels = np.random.default_rng(0).integers(0, 5, 200)
    few, more = k_shot(labels, 5, seed=1), k_shot(labels, 10, seed=1)
    assert np.bincount(labels[few]).tolist() == [5] * 5
    assert set(few) < set(more)
    assert set(few) != set(k_shot(labels, 5, seed=2))
    assert len(set(few.tolist())) == 25


def test_split_is_stratified_disjoint_and_seeded():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    first, second = split_fraction(labels, 0.2, seed=0)
    assert np.bincount(labels[second]).tolist() == [20, 10, 2]
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(160))
    assert second.tolist() != split_fraction(labels, 0.2, seed=1)[1].tolist()


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: size_of({"a": np.zeros(3), "b": np.zeros(4)}), "'b': 4"),
        (lambda: size_of({}), "common number"),
        (lambda: k_shot(np.array([0, 0, 1]), 2), "class 1 has 1"),
        (lambda: k_shot(np.array([0, 0, 1]), 0), "k=0"),
        (lambda: split_fraction(np.array([0]), 1.5), "1.5"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)
