"""A source -> batches, in an order that is a pure function of (seed, epoch).

A batch is a dictionary of the source's names with a first axis of length B, always: where examples run out the batch is
filled up with copies of the first example, and ``mask`` [B] says with 0 that they do not count. So one compiled program
serves all batches.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from jaxbig.data.ahead import read_ahead
from jaxbig.data.array import Arrays, Batch, order, size_of
from jaxbig.data.augment import Augmentation, Draw
from jaxbig.data.source import ArraySource, Source, as_source
from jaxbig.errors import UserError

MASK = "mask"


class Position(NamedTuple):
    """Where in the data a run is: `step` batches of epoch `epoch` are done. Serialise it as ``position._asdict()``."""

    epoch: int = 0
    step: int = 0


@dataclasses.dataclass(frozen=True)
class Loader:
    """Batches of a dataset, epoch by epoch, from any position on.

    What a batch holds depends on the source, `batch_size`, `seed`, `shuffle`, `remainder` and `augment` alone: not on
    threads, workers, the number of processes, or where one starts.

    Args:
        source: a source, or name -> array [N, ...], which is not copied.
        batch_size: B, of all processes together.
        seed: with the epoch it fixes the order.
        shuffle: False: the order of the source, in every epoch.
        remainder: "drop" leaves out the last examples of an epoch that fill no batch (others in each epoch);
            "pad" fills them up to a batch, and gives every batch a ``mask``.
        augment: ``(batch, draw) -> batch``, see `jaxbig.data.augment`.
        threads, workers, ahead: see `read_ahead`. For arrays in memory without `augment`, 0 threads are fastest.
        process_index, process_count: this process reads its B / process_count consecutive rows of every batch, e.g.
            ``jax.process_index(), jax.process_count()``.

    Raises:
        UserError: arrays of different lengths, no examples, a name ``mask`` with "pad", a batch larger than the dataset
            with "drop", a batch that the processes do not divide.

    Example:
        >>> loader = Loader({"label": np.arange(5)}, batch_size=2, shuffle=False, remainder="pad")
        >>> [(batch["label"].tolist(), batch["mask"].tolist()) for batch in loader.epoch(0, start=1)]
        [([2, 3], [1.0, 1.0]), ([4, 0], [1.0, 0.0])]
    """

    source: Source | Arrays
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    remainder: Literal["drop", "pad"] = "drop"
    augment: Augmentation | None = None
    threads: int = 0
    workers: int = 0
    ahead: int = 2
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        source = as_source(self.source)
        object.__setattr__(self, "source", source)
        n = len(source)
        if self.remainder not in ("drop", "pad"):
            raise UserError(f"Loader: remainder={self.remainder!r}; use 'drop' or 'pad'")
        if self.batch_size < 1 or n < 1:
            raise UserError(f"Loader: batch_size={self.batch_size} of {n} examples; both have to be at least 1")
        if self.remainder == "drop" and self.batch_size > n:
            raise UserError(
                f"Loader: batch_size={self.batch_size} but {n} examples; use remainder='pad' or smaller batches"
            )
        if isinstance(source, ArraySource):
            self._check_names(source.arrays)
        counts = {"threads": self.threads, "workers": self.workers, "ahead": self.ahead}
        if min(counts.values()) < 0:
            raise UserError(f"Loader: {', '.join(f'{name}={n}' for name, n in counts.items())}; use 0 or more")
        if not 0 <= self.process_index < self.process_count:
            raise UserError(
                f"Loader: process_index={self.process_index} of process_count={self.process_count}; they are "
                f"numbered from 0 to {self.process_count - 1}"
            )
        if self.batch_size % self.process_count:
            raise UserError(
                f"Loader: batch_size={self.batch_size} among {self.process_count} processes; use a multiple of "
                f"{self.process_count}"
            )

    @property
    def size(self) -> int:
        """Number of examples N."""
        return len(as_source(self.source))

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return self.size // self.batch_size if self.remainder == "drop" else -(-self.size // self.batch_size)

    def index(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Which examples this process's part of each batch of an epoch holds, for loops that run on the device.

        Args:
            epoch: number of the epoch, from 0.

        Returns:
            positions int64 [steps, B / process_count], and a mask float32 of the same shape.

        Example:
            >>> Loader({"x": np.zeros(5)}, 2, shuffle=False, remainder="pad").index(0)[0].tolist()
            [[0, 1], [2, 3], [4, 0]]
        """
        chosen = order(self.size, self.seed, epoch) if self.shuffle else np.arange(self.size)
        chosen = chosen[: self.steps * self.batch_size]
        missing = self.steps * self.batch_size - len(chosen)
        mask = np.concatenate([np.ones(len(chosen), np.float32), np.zeros(missing, np.float32)])
        index = np.concatenate([chosen, np.zeros(missing, chosen.dtype)])
        share = self.batch_size // self.process_count
        ours = slice(self.process_index * share, (self.process_index + 1) * share)
        return index.reshape(self.steps, -1)[:, ours], mask.reshape(self.steps, -1)[:, ours]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch.

        Args:
            epoch: number of the epoch, from 0.
            start: number of batches to leave out, as a resumed run does.

        Returns:
            iterator over batches.

        Example:
            >>> [batch["x"].tolist() for batch in Loader({"x": np.arange(4)}, 2, shuffle=False).epoch(0, start=1)]
            [[2, 3]]
        """
        return self.stream(Position(epoch, start), epoch + 1)

    def stream(self, position: Position, epochs: int) -> Iterator[Batch]:
        """The batches from a position on to the end of epoch ``epochs - 1``, read ahead beyond the end of an epoch.

        Where there are workers this starts them once, and `epoch` once an epoch.

        Args:
            position: where to begin.
            epochs: number of the epoch before which to end.

        Returns:
            iterator over batches.

        Example:
            >>> loader = Loader({"x": np.arange(4)}, 2, shuffle=False)
            >>> [batch["x"].tolist() for batch in loader.stream(Position(0, 1), epochs=2)]
            [[2, 3], [0, 1], [2, 3]]
        """
        return read_ahead(
            _Reader(self),
            epochs * self.steps,
            start=position.epoch * self.steps + min(position.step, self.steps),
            threads=self.threads,
            workers=self.workers,
            ahead=self.ahead,
        )

    def advance(self, position: Position) -> Position:
        """The position one batch on.

        Example:
            >>> Loader({"x": np.arange(4)}, 2).advance(Position(0, 1))
            Position(epoch=1, step=0)
        """
        last = position.step + 1 >= self.steps
        return Position(position.epoch + 1, 0) if last else Position(position.epoch, position.step + 1)

    def _check_names(self, batch: Arrays) -> None:
        if self.remainder == "pad" and MASK in batch:
            raise UserError(f"Loader: the dataset has an array {MASK!r} already; rename it, or use remainder='drop'")


class _Reader:
    """Number of a batch, counted from the first of epoch 0 -> the batch."""

    def __init__(self, loader: Loader):
        self.loader, self.source = loader, as_source(loader.source)
        # Of two epochs, because threads may be at the end of one and the start of the next. No lock: whoever finds
        # another's epoch here makes its own again, to the same numbers.
        self.indices: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}

    def __call__(self, number: int) -> Batch:
        loader = self.loader
        epoch, step = divmod(int(number), loader.steps)
        held = self.indices.get(epoch % 2)
        if held is None or held[0] != epoch:
            held = self.indices[epoch % 2] = (epoch, *loader.index(epoch))
        index, mask = held[1:]
        batch = dict(self.source.batch(index[step]))
        loader._check_names(batch)
        if loader.remainder == "pad":
            batch[MASK] = mask[step]
        if loader.augment is not None:
            batch = dict(loader.augment(batch, Draw(loader.seed, epoch, index[step])))
            if (size := size_of(batch)) != len(index[step]):
                raise UserError(f"augment: made {size} examples of {len(index[step])}; it has to keep their number")
        return batch
