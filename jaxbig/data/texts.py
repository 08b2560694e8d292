"""Texts as a tokenizer gave them, in batches of their own length."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxbig.data.bucket import Sequences
from jaxbig.data.source import Batch
from jaxbig.errors import UserError


class Texts(Sequences):
    """Token ids of N texts as a source for encoders: `Sequences`, with what tells padding and parts.

    Args:
        ids: N lists of token ids, special tokens included; what is longer than the last bound is cut off, so let the
            tokenizer cut, which keeps the last special token.
        bounds: lengths that batches may have, rising.
        columns: name -> array [N] of what else is known, such as labels.
        types: N lists that say which of its texts each token belongs to, 0 or 1; None: 0.
        padding: the id behind the end.

    A batch has ``ids`` int32 [B, T], ``segments`` int32 [B, T], 1 for tokens and 0 for padding, ``types`` int32 [B, T],
    ``length`` int32 [B], and `columns`.

    Raises:
        UserError: as `Sequences`; types of another length than their ids.

    Example:
        >>> source = Texts([[2, 7, 3], [2, 3]], bounds=(4,), types=[[0, 0, 1], [0, 0]])
        >>> batch = source.batch(np.array([0]))
        >>> [batch[name].tolist() for name in ("ids", "segments", "types")]
        [[[2, 7, 3, 0]], [[1, 1, 1, 0]], [[0, 0, 1, 0]]]
    """

    def __init__(
        self,
        ids: Sequence[Sequence[int]],
        bounds: Sequence[int],
        columns: Mapping[str, Any] | None = None,
        types: Sequence[Sequence[int]] | None = None,
        padding: int = 0,
    ):
        super().__init__([np.asarray(own, np.int32) for own in ids], bounds, columns, padding)
        if types is not None and [len(own) for own in types] != [len(own) for own in ids]:
            raise UserError("texts: types do not fit the ids; give one for each token of each text")
        self.types = None if types is None else [np.asarray(own, np.int32)[: self.bounds[-1]] for own in types]

    def batch(self, index: np.ndarray) -> Batch:
        """Texts `index` (int64 [B]), filled up to the smallest bound that holds them."""
        found = super().batch(index)
        segments = (np.arange(found["ids"].shape[1]) < found["length"][:, None]).astype(np.int32)
        types = np.zeros_like(segments)
        if self.types is not None:
            for row, i in zip(types, index, strict=True):
                row[: self.lengths[i]] = self.types[i]
        return {**found, "segments": segments, "types": types}
