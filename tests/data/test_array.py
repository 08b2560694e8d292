"""Batches: order, resumption, padding, k-shot and stratified splits."""

import json

import numpy as np
import pytest

from jaxbig.data import Loader, Position, k_shot, order, split_fraction
from jaxbig.errors import UserError


def dataset(n=10):
    return {"image": np.arange(n * 4, dtype=np.float32).reshape(n, 2, 2), "label": np.arange(n)}


def labels_of(loader, epoch, start=0):
    return [batch["label"].tolist() for batch in loader.epoch(epoch, start)]


def test_order_is_a_permutation_fixed_for_all_time():
    # The numbers are pinned: a change would silently change every run that somebody has published.
    assert order(8, seed=3, epoch=2).tolist() == [2, 3, 6, 4, 1, 7, 5, 0]
    assert sorted(order(1000, 0, 0).tolist()) == list(range(1000))


@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_epochs_differ_seeds_differ_and_repeat(remainder):
    loader = Loader(dataset(), 3, seed=1, remainder=remainder)
    assert labels_of(loader, 0) == labels_of(Loader(dataset(), 3, seed=1, remainder=remainder), 0)
    assert labels_of(loader, 0) != labels_of(loader, 1)
    assert labels_of(loader, 0) != labels_of(Loader(dataset(), 3, seed=2, remainder=remainder), 0)


@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_resumes_at_the_very_batch_from_a_serialised_position(remainder):
    loader = Loader(dataset(), 3, remainder=remainder)
    position, seen = Position(), []
    while position.epoch < 3:
        restored = Position(**json.loads(json.dumps(position._asdict())))
        seen.append(next(iter(loader.epoch(restored.epoch, restored.step)))["label"].tolist())
        position = loader.advance(position)
    assert seen == [batch for epoch in range(3) for batch in labels_of(loader, epoch)]


def test_padding_keeps_one_shape_and_counts_each_example_once():
    loader = Loader(dataset(), 4, remainder="pad")
    batches = list(loader.epoch(5))
    assert {batch["image"].shape for batch in batches} == {(4, 2, 2)}
    assert len(batches) == loader.steps == 3
    counted = np.concatenate([batch["label"][batch["mask"] == 1] for batch in batches])
    assert sorted(counted.tolist()) == list(range(10))
    for batch in batches:
        np.testing.assert_array_equal(batch["image"][:, 0, 0], batch["label"] * 4)


def test_drop_leaves_out_different_examples_in_each_epoch():
    loader = Loader(dataset(), 4)
    left_out = [set(range(10)) - {label for batch in labels_of(loader, epoch) for label in batch} for epoch in range(4)]
    assert all(len(some) == 2 for some in left_out)
    assert len({tuple(sorted(some)) for some in left_out}) > 1


def test_index_tells_what_epoch_yields():
    loader = Loader(dataset(), 4, seed=4, remainder="pad")
    index, mask = loader.index(2)
    for step, batch in enumerate(loader.epoch(2)):
        np.testing.assert_array_equal(batch["label"], index[step])
        np.testing.assert_array_equal(batch["mask"], mask[step])


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
        (lambda: Loader({"a": np.zeros(3), "b": np.zeros(4)}, 2), "'b': 4"),
        (lambda: Loader({}, 2), "common number"),
        (lambda: Loader({"a": np.zeros(3)}, 4), "remainder='pad'"),
        (lambda: Loader({"a": np.zeros(3)}, 0), "batch_size=0"),
        (lambda: Loader({"mask": np.zeros(3)}, 2, remainder="pad"), "'mask'"),
        (lambda: Loader({"a": np.zeros(3)}, 2, remainder="keep"), "'keep'"),  # pyright: ignore[reportArgumentType]
        (lambda: k_shot(np.array([0, 0, 1]), 2), "class 1 has 1"),
        (lambda: k_shot(np.array([0, 0, 1]), 0), "k=0"),
        (lambda: split_fraction(np.array([0]), 1.5), "1.5"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)
