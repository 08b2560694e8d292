"""Buckets: every example once, batches of one bucket, short padding, and a trainer that runs over them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbig import full
from jaxbig.data import BucketLoader, Loader, Sequences
from jaxbig.data.loader import Position
from jaxbig.errors import UserError
from jaxbig.evaluate import evaluate
from jaxbig.models import RNN
from jaxbig.objective import classify
from jaxbig.train import Run, Task, fit

RNG = np.random.default_rng(0)
IDS = [RNG.integers(1, 9, n) for n in RNG.integers(0, 13, 50)]
SOURCE = Sequences(IDS, (4, 8, 12), {"label": np.arange(50) % 2})


def test_a_batch_is_filled_up_to_the_smallest_bound():
    index = np.array([i for i, own in enumerate(IDS) if 4 < len(own) <= 8][:3])
    batch = SOURCE.batch(index)
    assert batch["ids"].shape == (3, 8)
    for i, row, length in zip(index, batch["ids"], batch["length"], strict=True):
        assert row[:length].tolist() == IDS[i].tolist()
        assert not row[length:].any()
    cut = Sequences([np.arange(1, 9)], (2, 5), padding=-1).batch(np.array([0]))
    assert cut["ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert cut["length"].tolist() == [5]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_example_comes_once_in_batches_of_one_bucket(shuffle):
    loader = BucketLoader(SOURCE, 8, seed=3, shuffle=shuffle, remainder="pad", buckets=SOURCE.buckets)
    index, mask = loader.index(1)
    assert index.shape == mask.shape == (loader.steps, 8)
    assert sorted(index[mask == 1]) == list(range(50))
    for row in index:
        assert len(set(SOURCE.buckets[row])) == 1
    lengths = [batch["ids"].shape[1] for batch in loader.epoch(1)]
    assert set(lengths) == {4, 8, 12}
    if shuffle:
        assert not np.array_equal(loader.index(0)[0], index)
        assert lengths != sorted(lengths)
    dropped = BucketLoader(SOURCE, 8, buckets=SOURCE.buckets)
    found = dropped.index(0)[0]
    assert len(np.unique(found)) == found.size == sum(n // 8 * 8 for n in np.bincount(SOURCE.buckets))


def test_processes_share_a_batch_and_a_position_goes_on():
    whole = BucketLoader(SOURCE, 4, remainder="pad", buckets=SOURCE.buckets)
    parts = [
        BucketLoader(SOURCE, 4, remainder="pad", buckets=SOURCE.buckets, process_index=i, process_count=2)
        for i in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate([part.index(0)[0] for part in parts], axis=1), whole.index(0)[0])
    first = list(whole.stream(Position(0, 0), 2))
    for a, b in zip(first[5:], whole.stream(Position(0, 5), 2), strict=True):
        np.testing.assert_array_equal(a["ids"], b["ids"])


@pytest.mark.slow
def test_training_is_as_without_buckets_where_padding_counts_nothing(tmp_path):
    """A loss over all batches is the same number, however the examples are put together."""
    model = RNN(2, hidden=3, cell="gru", vocabulary=9, embedding=4)
    params = model.init(jax.random.key(0), jnp.ones((1, 4), int), jnp.ones(1, int))["params"]
    loaders = [
        BucketLoader(SOURCE, 8, remainder="pad", buckets=SOURCE.buckets),
        Loader(Sequences(IDS, (12,), {"label": np.arange(50) % 2}), 50, remainder="pad"),
    ]
    objective = classify(model, train=False, inputs=("ids", "length"))
    found = [evaluate(objective, params, loader) for loader in loaders]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)
    assert found[0]["accuracy"] == found[1]["accuracy"]
    task = Task(classify(model, inputs=("ids", "length")), full(), optax.adam(3e-2), loaders[0])
    split = full().init(jax.random.key(1), params, {})
    fitted = fit(task, split, jax.random.key(2), Run(3, tmp_path, quiet=True))
    assert [line["step"] for line in fitted.history] == [loaders[0].steps * n for n in (1, 2, 3)]
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: Sequences(IDS, (4, 4)), "bounds=(4, 4)"),
        (lambda: Sequences([], (4,)), "there are none"),
        (lambda: Sequences(IDS, (4,), {"label": np.zeros(3)}), "'label': 3"),
        (lambda: BucketLoader(SOURCE, 4), "for 50 examples"),
        (lambda: BucketLoader(SOURCE, 50, buckets=SOURCE.buckets), "fills a batch of 50"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)
