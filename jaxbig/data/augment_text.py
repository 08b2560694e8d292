"""Text as token ids. Legend of the shape suffixes: B batch, T tokens."""

import dataclasses

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.augment import Draw, array_of
from jaxbig.errors import UserError


@dataclasses.dataclass(frozen=True)
class TokenDropout:
    """Replaces some tokens by one that says nothing; special tokens stay.

    Args:
        rate: share of the other tokens that are replaced.
        replacement: id of the unknown or the mask token.
        special: ids that are never replaced: padding, begin, end, separators.
        inputs: name of the ids, integers [B, T].

    Raises:
        UserError: `rate` is not between 0 and 1, or a batch without such ids.

    Example:
        >>> drop = TokenDropout(rate=1, replacement=3, special=(0, 1, 2))
        >>> drop({"ids": np.array([[1, 7, 8, 2, 0]])}, Draw(0, 0, np.arange(1)))["ids"].tolist()
        [[1, 3, 3, 2, 0]]

    Reference:
        Iyyer et al. (2015), "Deep unordered composition rivals syntactic methods for text classification", ACL 2015.
        Deviation: they leave words out; here the length and the places of all others stay.
    """

    rate: float
    replacement: int
    special: tuple[int, ...]
    inputs: str = "ids"

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise UserError(f"TokenDropout: rate={self.rate}; use a number between 0 and 1")

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        ids_BT = array_of(batch, self.inputs)
        if ids_BT.ndim != 2 or not np.issubdtype(ids_BT.dtype, np.integer):
            raise UserError(
                f"TokenDropout: {self.inputs} is {ids_BT.dtype.name} {ids_BT.shape}; give integer ids [B, T]"
            )
        dropped_BT = draw.uniform("drop", shape=ids_BT.shape[1:]) < self.rate
        dropped_BT &= ~np.isin(ids_BT, self.special)
        return batch | {self.inputs: np.where(dropped_BT, ids_BT.dtype.type(self.replacement), ids_BT)}
