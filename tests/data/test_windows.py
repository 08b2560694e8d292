"""A long text in rows: every token but the first is predicted once."""

import numpy as np
import pytest

from jaxbig.data import windows
from jaxbig.errors import UserError


@pytest.mark.parametrize(("tokens", "length"), [(10, 4), (11, 4), (12, 4), (5, 5), (7, 2)])
def test_every_token_is_predicted_once(tokens, length):
    text = np.arange(tokens, dtype=np.uint8)
    rows = windows(text, length)["ids"]
    assert rows.dtype == np.int32
    predicted = rows[:, 1:].reshape(-1)
    assert predicted.tolist() == list(range(1, len(predicted) + 1))
    assert tokens - 1 - len(predicted) < length - 1
    assert (rows[1:, 0] == rows[:-1, -1]).all()


@pytest.mark.parametrize(
    ("ids", "length", "message"),
    [(np.zeros((2, 3), int), 2, "give one row"), (np.zeros(9), 2, "of float64"), (np.arange(4), 5, "use 2 to 4"),
     (np.arange(4), 1, "length=1"), (np.arange(1), 2, "a text of 1 tokens; give a longer one")],
)  # fmt: skip
def test_what_does_not_fit(ids, length, message):
    with pytest.raises(UserError, match=message):
        windows(ids, length)
