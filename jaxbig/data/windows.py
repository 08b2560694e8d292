"""One long text in rows of a fixed length.

Legend of the shape suffixes: N rows, L tokens of a row.
"""

from typing import Any

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.errors import UserError


def windows(ids: Any, length: int) -> Batch:
    """Rows of a text, each of which begins with the last token of the one before.

    So every token but the text's first is predicted once, from up to L - 1 tokens before it. What is left at the end,
    less than a row, is not used.

    Args:
        ids: token ids, integers [tokens].
        length: L, at least 2.

    Returns:
        ``{"ids": int32 [N, L]}``, N = (tokens - 1) // (L - 1).

    Raises:
        UserError: `ids` is not one row of integers, L is below 2, or the text is shorter than L.

    Example:
        >>> windows(np.arange(8), 4)["ids"].tolist()
        [[0, 1, 2, 3], [3, 4, 5, 6]]
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"windows: ids {list(ids.shape)} of {ids.dtype}; give one row of integers")
    if len(ids) < 2:
        raise UserError(f"windows: a text of {len(ids)} tokens; give a longer one")
    if length < 2 or len(ids) < length:
        raise UserError(f"windows: length={length} of {len(ids)} tokens; use 2 to {len(ids)}")
    count = (len(ids) - 1) // (length - 1)
    rows = np.lib.stride_tricks.sliding_window_view(ids, length)[:: length - 1][:count]
    return {"ids": np.ascontiguousarray(rows, np.int32)}
