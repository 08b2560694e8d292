"""Sources: where examples come from, whether they lie in memory, in files, or are made on the way.

A source knows how many examples it has, and gives any of them as a batch. That is all a loader needs, so a file format
is one small class, and what is done to examples (normalising, choosing rows) wraps any of them.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxbig.data.array import Batch, select, size_of
from jaxbig.errors import UserError

_FINGERPRINTED = 1000
_AT_ONCE = 100


@runtime_checkable
class Source(Protocol):
    """N examples, any of which can be had at any time, and are the same each time.

    ``batch`` may be called from several threads at once. Text is an array of Python strings (dtype object).

    Example:
        >>> class Squares:
        ...     def __len__(self):
        ...         return 10
        ...
        ...     def batch(self, index):
        ...         return {"x": index, "y": index**2}
        >>> isinstance(Squares(), Source), Squares().batch(np.array([3, 1]))["y"].tolist()
        (True, [9, 1])
    """

    def __len__(self) -> int:
        """Number of examples N."""
        ...

    def batch(self, index: np.ndarray) -> Batch:
        """Rows `index` (int64 [B], each in 0 ... N-1, in any order, repetition allowed) as name -> array [B, ...]."""
        ...


class ArraySource:
    """Arrays in memory (or memory-mapped) as a source.

    Args:
        arrays: name -> array [N, ...]; not copied.

    Attributes:
        arrays: the same, as NumPy arrays.

    Raises:
        UserError: there are no arrays, or their first axes differ.

    Example:
        >>> source = ArraySource({"x": np.arange(6).reshape(3, 2), "label": np.array([7, 8, 9])})
        >>> len(source), source.batch(np.array([2, 0]))["label"].tolist()
        (3, [9, 7])
    """

    def __init__(self, arrays: Mapping[str, Any]):
        self.arrays: Batch = {name: np.asarray(array) for name, array in arrays.items()}
        self._n = size_of(self.arrays)

    def __len__(self) -> int:
        return self._n

    def batch(self, index: np.ndarray) -> Batch:
        """Rows `index` (int64 [B]) as name -> array [B, ...]."""
        return select(self.arrays, positions(index, self._n))


class Mapped:
    """A source with a function applied to each batch: ``function(source.batch(index))``.

    Args:
        source: a source, or name -> array [N, ...].
        function: batch -> batch, vectorised and pure: what it makes of an example must depend on that example alone.

    Raises:
        UserError: on `batch`, when the function changes the number of examples.

    Example:
        >>> halved = Mapped({"x": np.arange(4.0)}, lambda batch: {"x": batch["x"] / 2})
        >>> halved.batch(np.array([3]))["x"].tolist()
        [1.5]
    """

    def __init__(self, source: Source | Mapping[str, Any], function: Callable[[Batch], Batch]):
        self.source = as_source(source)
        self.function = function

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, index: np.ndarray) -> Batch:
        """Rows `index` (int64 [B]) as name -> array [B, ...]."""
        made = {name: np.asarray(array) for name, array in self.function(self.source.batch(index)).items()}
        if (n := size_of(made)) != len(index):
            raise UserError(f"Mapped: the function made {n} examples of {len(index)}; it has to keep their number")
        return made


class Subset:
    """Some rows of a source, in the order given.

    Args:
        source: a source, or name -> array [N, ...].
        rows: integers [M], each in 0 ... N-1, as `split_fraction` and `k_shot` return them.

    Raises:
        UserError: a row is no integer or lies outside.

    Example:
        >>> last_first = Subset({"x": np.array([7, 8, 9])}, np.array([2, 0]))
        >>> len(last_first), last_first.batch(np.array([0]))["x"].tolist()
        (2, [9])
    """

    def __init__(self, source: Source | Mapping[str, Any], rows: np.ndarray):
        self.source = as_source(source)
        self.rows = positions(rows, len(self.source))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: np.ndarray) -> Batch:
        """Rows `index` (int64 [B]) of the subset as name -> array [B, ...]."""
        return self.source.batch(self.rows[positions(index, len(self.rows))])


def as_source(arrays_or_source: Source | Mapping[str, Any]) -> Source:
    """A source as it is; name -> array [N, ...] as an `ArraySource`.

    Raises:
        UserError: it is neither, or the arrays' first axes differ.

    Example:
        >>> len(as_source({"x": np.zeros((5, 2))}))
        5
    """
    if isinstance(arrays_or_source, Mapping):
        return ArraySource(arrays_or_source)
    if isinstance(arrays_or_source, Source):
        return arrays_or_source
    kind = type(arrays_or_source).__name__
    raise UserError(f"dataset: {kind} is no source; give name -> array, or an object with __len__ and batch(index)")


def positions(index: Any, n: int) -> np.ndarray:
    """Checks positions of examples.

    Args:
        index: integers [B].
        n: number of examples.

    Returns:
        int64 [B].

    Raises:
        UserError: not one axis of integers, or one lies outside of 0 ... n-1.

    Example:
        >>> positions([2, 0], 3).dtype.name
        'int64'
    """
    index = np.asarray(index)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise UserError(f"dataset: positions are integers along one axis, not {index.dtype.name} {index.shape}")
    index = index.astype(np.int64)
    if index.size and not (index.min() >= 0 and index.max() < n):
        wrong = index[(index < 0) | (index >= n)][0]
        raise UserError(f"dataset: there is no example {wrong}, they are numbered from 0 to {n - 1}")
    return index


def fingerprint(source: Source | Mapping[str, Any]) -> dict[str, Any]:
    """What tells two datasets apart, small enough for a checkpoint's manifest: shapes, and a hash of some of the rows.

    Args:
        source: a source, or name -> array [N, ...].

    Returns:
        JSON-able: ``examples`` N, ``arrays`` (name -> shape and dtype of one example's part) and ``sha256`` over the
        1,000 rows floor(k N / 1000), or all of them where there are fewer. The same on every platform.

    Example:
        >>> one, other = fingerprint({"x": np.arange(3)}), fingerprint({"x": np.array([0, 1, 3])})
        >>> one["examples"], one["arrays"], one["sha256"] == other["sha256"]
        (3, {'x': {'shape': [], 'dtype': 'int64'}}, False)
    """
    source = as_source(source)
    n = len(source)
    rows = np.arange(min(n, _FINGERPRINTED), dtype=np.int64) * n // max(min(n, _FINGERPRINTED), 1)
    digest = hashlib.sha256()
    arrays: dict[str, Any] = {}
    for start in range(0, max(len(rows), 1), _AT_ONCE):
        batch = source.batch(rows[start : start + _AT_ONCE])
        for name in sorted(batch):
            array = np.asarray(batch[name])
            arrays[name] = {"shape": list(array.shape[1:]), "dtype": array.dtype.name}
            digest.update(name.encode())
            digest.update(_bytes(array))
    return {"examples": n, "arrays": arrays, "sha256": digest.hexdigest()}


def _bytes(array: np.ndarray) -> bytes:
    if array.dtype == object:
        # str() of a long array leaves out its middle.
        parts = [_bytes(item) if isinstance(item, np.ndarray) else str(item).encode() for item in array.ravel()]
        return b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
