"""Token dropout: its share of ordinary tokens, never a special one."""

import numpy as np
import pytest

from jaxbig.data import Draw
from jaxbig.data.augment_text import TokenDropout
from jaxbig.errors import UserError

IDS = np.random.default_rng(0).integers(0, 30, (300, 40)).astype(np.int32)


def test_a_share_of_the_ordinary_tokens_is_replaced():
    special = (0, 1, 2, 29)
    dropped = TokenDropout(0.2, 28, special)({"ids": IDS}, Draw(0, 0, np.arange(300)))["ids"]
    assert dropped.dtype == np.int32
    changed = dropped != IDS
    assert (dropped[changed] == 28).all()
    assert not changed[np.isin(IDS, special)].any()
    ordinary = ~np.isin(IDS, (*special, 28))
    assert abs(changed[ordinary].mean() - 0.2) < 5 * np.sqrt(0.16 / ordinary.sum())
    np.testing.assert_array_equal(TokenDropout(0, 28, special)({"ids": IDS}, Draw(0, 0, np.arange(300)))["ids"], IDS)


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: TokenDropout(-0.1, 3, ()), "rate=-0.1"),
        (lambda: TokenDropout(0.1, 3, ())({"ids": IDS[0]}, Draw(0, 0, np.arange(40))), "[B, T]"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)
