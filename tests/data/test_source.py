"""Sources: arrays, wrappers around them, and what tells two of them apart."""

import hashlib
import json

import numpy as np
import pytest

from jaxbig.data import ArraySource, Mapped, Source, Subset, as_source, fingerprint
from jaxbig.errors import UserError


def arrays(n=6):
    return {"image": np.arange(n * 4, dtype=np.float32).reshape(n, 2, 2), "label": np.arange(n)}


class Broken:
    """A source with a row that must not be read."""

    def __len__(self):
        return 5000

    def batch(self, index):
        assert 1 not in index
        return {"x": np.asarray(index)}


def test_a_batch_is_the_rows_in_order_with_repetition():
    source = as_source(arrays())
    batch = source.batch(np.array([4, 0, 4]))
    assert isinstance(source, Source)
    np.testing.assert_array_equal(batch["image"], arrays()["image"][[4, 0, 4]])
    assert batch["label"].tolist() == [4, 0, 4]
    assert source.batch(np.array([], np.int64))["image"].shape == (0, 2, 2)


def test_a_source_passes_and_arrays_are_not_copied():
    given = arrays()
    source = ArraySource(given)
    assert as_source(source) is source
    assert np.shares_memory(source.arrays["image"], given["image"])


def test_wrappers_wrap_each_other():
    doubled = Mapped(Subset(arrays(), np.array([5, 3, 1])), lambda batch: {"y": 2 * batch["label"]})
    assert len(doubled) == 3
    assert doubled.batch(np.array([2, 0]))["y"].tolist() == [2, 10]


def test_fingerprint_is_pinned_and_tells_datasets_apart():
    # Written out by hand: checkpoints hold these hashes, so they must never change.
    first = fingerprint({"x": np.array([1, 2], np.int16)})
    assert first["sha256"] == hashlib.sha256(b"x\x01\x00\x02\x00").hexdigest()
    assert json.loads(json.dumps(first)) == first
    assert first == fingerprint({"x": np.array([1, 2], ">i2")})
    text = fingerprint({"text": np.array(["ab", "c"], object)})
    assert text != fingerprint({"text": np.array(["a", "bc"], object)})
    ragged = np.empty(2, object)
    ragged[0], ragged[1] = np.zeros(5000), np.zeros(3)
    before = fingerprint({"x": ragged})
    ragged[0][2500] = 1
    assert fingerprint({"x": ragged}) != before
    base = fingerprint(arrays())
    assert base == fingerprint(Subset(arrays(), np.arange(6)))
    assert base != fingerprint(Subset(arrays(), np.array([0, 1, 2, 4, 3, 5])))
    assert base["arrays"] == {
        "image": {"shape": [2, 2], "dtype": "float32"},
        "label": {"shape": [], "dtype": "int64"},
    }


def test_fingerprint_reads_a_thousand_rows_of_many():
    assert fingerprint(Broken())["examples"] == 5000
    assert fingerprint({"x": np.zeros((0, 3))})["arrays"] == {"x": {"shape": [3], "dtype": "float64"}}


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: ArraySource({"a": np.zeros(3), "b": np.zeros(4)}), "'b': 4"),
        (lambda: ArraySource({}), "common number"),
        (lambda: as_source([1, 2]), "list is no source"),
        (lambda: as_source(arrays()).batch(np.array([6])), "no example 6, they are numbered from 0 to 5"),
        (lambda: as_source(arrays()).batch(np.array([-1])), "no example -1"),
        (lambda: as_source(arrays()).batch(np.array([0.0])), "integers along one axis, not float64"),
        (lambda: Subset(arrays(), np.array([[0]])), r"not int64 (1, 1)"),
        (lambda: Subset(arrays(), np.array([7])), "no example 7"),
        (lambda: Subset(arrays(), np.array([3])).batch(np.array([1])), "no example 1"),
        (lambda: Mapped(arrays(), lambda b: {"x": b["label"][:1]}).batch(np.array([0, 1])), "made 1 examples of 2"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)
