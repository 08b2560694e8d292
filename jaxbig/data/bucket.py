"""Sequences of different lengths in batches of like lengths, so that little of a batch is padding.

A program is compiled for each of a few lengths in place of one for the longest.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxbig.data.array import Batch, order, size_of
from jaxbig.data.loader import Loader
from jaxbig.data.source import positions
from jaxbig.errors import UserError


class Sequences:
    """Lists of token ids as a source; a batch is as long as the smallest bound that holds its longest sequence.

    Args:
        ids: N arrays of integers [length]; what is longer than the last bound is cut off.
        bounds: lengths that batches may have, rising.
        columns: name -> array [N] of what else is known, such as labels.
        padding: the id behind the end.

    Attributes:
        lengths: int32 [N], after cutting. buckets: int64 [N], the place of each sequence's bound. columns: as given.

    A batch has ``ids`` int32 [B, T], ``length`` int32 [B], and `columns`.

    Raises:
        UserError: no sequences, bounds that do not rise from 1 on, columns of another length.

    Example:
        >>> source = Sequences([np.array([5, 6]), np.array([7, 8, 9, 7, 8])], bounds=(3, 4))
        >>> source.batch(np.array([0]))["ids"].tolist(), source.batch(np.array([0, 1]))["ids"].tolist()
        ([[5, 6, 0]], [[5, 6, 0, 0], [7, 8, 9, 7]])
    """

    def __init__(
        self,
        ids: Sequence[np.ndarray],
        bounds: Sequence[int],
        columns: Mapping[str, Any] | None = None,
        padding: int = 0,
    ):
        self.bounds, self.padding = np.asarray(bounds), padding
        if self.bounds.ndim != 1 or not len(self.bounds) or (np.diff(self.bounds, prepend=0) < 1).any():
            raise UserError(f"sequences: bounds={bounds}; give lengths that rise, such as (8, 16, 32)")
        if not len(ids):
            raise UserError("sequences: there are none; give at least one")
        self.ids = [np.asarray(own)[: self.bounds[-1]] for own in ids]
        self.columns: Batch = {name: np.asarray(column) for name, column in (columns or {}).items()}
        size_of({"ids": np.empty(len(self.ids)), **self.columns})
        self.lengths = np.array([len(own) for own in self.ids], np.int32)
        self.buckets = np.searchsorted(self.bounds, self.lengths)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, index: np.ndarray) -> Batch:
        """Sequences `index` (int64 [B]), filled up to the smallest bound that holds them."""
        index = positions(index, len(self))
        longest = self.bounds[self.buckets[index].max(initial=0)]
        ids = np.full((len(index), longest), self.padding, np.int32)
        for row, i in zip(ids, index, strict=True):
            row[: self.lengths[i]] = self.ids[i]
        return {"ids": ids, "length": self.lengths[index]} | {name: c[index] for name, c in self.columns.items()}


@dataclasses.dataclass(frozen=True)
class BucketLoader(Loader):
    """A `Loader` whose batches hold examples of one bucket each; examples and batches are shuffled in every epoch.

    Args:
        buckets: integers [N], which examples belong together, such as `Sequences.buckets`; the others are those of
            `Loader`. With "drop" what fills no batch of its bucket is left out; with "pad" it is filled up with copies
            of an example of the same bucket, which ``mask`` does not count.

    Raises:
        UserError: as `Loader`; not one bucket for each example, or with "drop" no bucket that fills a batch.

    Example:
        >>> source = Sequences([np.ones(n, int) for n in (2, 9, 3, 8)], bounds=(4, 16))
        >>> loader = BucketLoader(source, batch_size=2, buckets=source.buckets)
        >>> sorted(batch["ids"].shape for batch in loader.epoch(0))
        [(2, 4), (2, 16)]

    Reference:
        Khomenko et al. (2016), "Accelerating recurrent neural network training using sequence bucketing",
        arXiv:1708.05604.
    """

    buckets: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        buckets = np.asarray(self.buckets)
        if buckets.shape != (self.size,) or buckets.dtype.kind not in "iu":
            raise UserError(
                f"BucketLoader: buckets are {buckets.dtype.name} {list(buckets.shape)} for {self.size} examples; give "
                "one whole number for each, such as Sequences.buckets"
            )
        object.__setattr__(self, "buckets", buckets)
        if not self.steps:
            raise UserError(f"BucketLoader: no bucket fills a batch of {self.batch_size}; use remainder='pad'")

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        counts = np.unique(self.buckets, return_counts=True)[1]
        return int((counts // self.batch_size if self.remainder == "drop" else -(-counts // self.batch_size)).sum())

    def index(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Loader.index`, each batch's examples from one bucket."""
        chosen = order(self.size, self.seed, epoch) if self.shuffle else np.arange(self.size)
        rows, masks = [], []
        for bucket in np.unique(self.buckets):
            own = chosen[self.buckets[chosen] == bucket]
            if self.remainder == "drop":
                own = own[: len(own) // self.batch_size * self.batch_size]
            missing = -len(own) % self.batch_size
            rows.append(np.concatenate([own, np.repeat(own[:1], missing)]))
            masks.append(np.repeat(np.array([1, 0], np.float32), (len(own), missing)))
        index, mask = (np.concatenate(parts).reshape(-1, self.batch_size) for parts in (rows, masks))
        if self.shuffle:
            # Of the batches, by numbers that have nothing to do with those of the examples.
            turn = order(len(index), self.seed + 2**31, epoch)
            index, mask = index[turn], mask[turn]
        share = self.batch_size // self.process_count
        ours = slice(self.process_index * share, (self.process_index + 1) * share)
        return index[:, ours], mask[:, ours]
