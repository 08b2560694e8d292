"""Statistics of a training set: what inputs are normalised by, and what classes are weighted by."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.source import Mapped, Source, as_source
from jaxbig.errors import UserError

_AT_ONCE = 512


class Moments(NamedTuple):
    """Mean and standard deviation (over N, not N - 1) of an array's channels.

    Attributes:
        mean, std: float32 [C] (its last axis), or [] for the whole array; ``std`` is 1 for a channel that never varies.
        count: how many values each channel has.
    """

    mean: np.ndarray
    std: np.ndarray
    count: int


class Running:
    """Count, mean, standard deviation, smallest and largest of values that come in parts.

    Attributes:
        count: values of each channel so far. mean, square (sum of squared distances from it), low, high: float64 [C].

    Example:
        >>> running = Running()
        >>> running.add(np.array([1.0, 2.0]))
        >>> running.add(np.array([6.0]))
        >>> running.count, float(running.mean), float(running.high), round(float(running.std()), 3)
        (3, 3.0, 6.0, 2.16)

    Reference:
        Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance".
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.square = np.float64(0)
        self.low, self.high = np.float64(np.inf), np.float64(-np.inf)

    def add(self, values: np.ndarray) -> None:
        """Takes in values [n], or [n, C]."""
        if not len(values):
            return
        values = values.astype(np.float64)
        mean = values.mean(axis=0)
        total = self.count + len(values)
        shift = mean - self.mean
        self.square = self.square + ((values - mean) ** 2).sum(axis=0) + shift**2 * (self.count * len(values) / total)
        self.mean = self.mean + shift * (len(values) / total)
        self.low, self.high = np.minimum(self.low, values.min(axis=0)), np.maximum(self.high, values.max(axis=0))
        self.count = total

    def std(self) -> np.ndarray:
        """Standard deviation over all values (divided by their number, not by one less)."""
        return np.sqrt(self.square / max(self.count, 1))


def moments(
    source: Source | Mapping[str, Any], names: Sequence[str], per: Literal["channel", "array"] = "channel"
) -> dict[str, Moments]:
    """Mean and standard deviation of arrays, in one pass over a source of any size.

    Args:
        source: the training set, and nothing else: statistics of held-out examples are a leak.
        names: the arrays, of numbers; such as ["image"].
        per: "channel": one mean for each place along the last axis (colours of an image, columns of a table), an array
            [N] being one channel; "array": one for all (a recording [N, T], whose last axis is time).

    Returns:
        name -> `Moments`.

    Raises:
        UserError: no examples, no such array, one that holds no numbers or a NaN.

    Example:
        >>> moments({"x": np.float32([[1, 10], [3, 10]])}, ["x"])["x"]
        Moments(mean=array([ 2., 10.], dtype=float32), std=array([1., 1.], dtype=float32), count=2)

    """
    if per not in ("channel", "array"):
        raise UserError(f"moments: per={per!r}; use 'channel' or 'array'")
    source = as_source(source)
    if not len(source):
        raise UserError("moments: there are no examples; give a training set")
    running = {name: Running() for name in names}
    for batch in in_order(source):
        for name in names:
            array = _numbers(name, batch)
            if not np.isfinite(array).all():
                raise UserError(
                    f"moments: array {name!r} holds NaN or infinity; fill or leave out missing values first"
                )
            running[name].add(channels(array) if per == "channel" else array.reshape(-1))
    found = {}
    for name in names:
        std = running[name].std()
        std = np.where(std == 0, 1, std).astype(np.float32)
        found[name] = Moments(np.asarray(running[name].mean, np.float32), std, running[name].count)
    return found


def channels(array: np.ndarray) -> np.ndarray:
    """An array [N, ..., C] as [values, C]; an array [N] as it is.

    Example:
        >>> channels(np.zeros((2, 4, 4, 3))).shape
        (32, 3)
    """
    return array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array


def normalise(source: Source | Mapping[str, Any], by: Mapping[str, Moments]) -> Mapped:
    """A source with arrays of mean 0 and standard deviation 1: ``(x - mean) / std``, in float32.

    Args:
        source: any part of a set.
        by: what `moments` found in the training part.

    Returns:
        the source; arrays that `by` does not name stay as they are.

    Raises:
        UserError: on `batch`, when the source has no such array, or one of other channels.

    Example:
        >>> train, test = {"x": np.float32([1, 3])}, {"x": np.float32([5])}
        >>> normalise(test, by=moments(train, ["x"])).batch(np.array([0]))["x"].tolist()
        [3.0]
    """

    def normalised(batch: Batch) -> Batch:
        return batch | {name: _normalised(name, batch, m) for name, m in by.items()}

    return Mapped(source, normalised)


def class_weights(labels: Any, classes: int | None = None) -> np.ndarray:
    """Weights under which all classes count the same: ``N / (classes * count)``.

    Args:
        labels: integers [N] from 0.
        classes: number of classes; None takes the largest label and one.

    Returns:
        float32 [classes]; their mean over the examples is 1.

    Raises:
        UserError: labels are no integers from 0 to classes - 1; a class has no examples.

    Example:
        >>> class_weights(np.array([0, 0, 1, 0, 1, 0]))
        array([0.75, 1.5 ], dtype=float32)

    Reference:
        King and Zeng (2001), "Logistic regression in rare events data"; scikit-learn's "balanced".
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UserError(f"class_weights: labels are {labels.dtype.name} {list(labels.shape)}, not integers [N] from 0")
    counts = np.bincount(labels, minlength=classes or 0)
    if classes is not None and len(counts) > classes:
        raise UserError(f"class_weights: label {len(counts) - 1}, but there are {classes} classes; give more")
    if empty := np.flatnonzero(counts == 0).tolist():
        raise UserError(f"class_weights: class {empty[0]} has no examples; leave it out, or add some")
    return (len(labels) / (len(counts) * counts)).astype(np.float32)


def in_order(source: Source, rows: np.ndarray | None = None) -> Iterator[Batch]:
    """A source's examples (or the given rows), in batches of 512, the last one shorter.

    Example:
        >>> [len(batch["x"]) for batch in in_order(as_source({"x": np.zeros(600)}))]
        [512, 88]
    """
    rows = np.arange(len(source)) if rows is None else rows
    for start in range(0, len(rows), _AT_ONCE):
        yield source.batch(rows[start : start + _AT_ONCE])


def _numbers(name: str, batch: Batch) -> np.ndarray:
    if name not in batch:
        raise UserError(f"normalise: no array {name!r}; there are {', '.join(batch)}")
    if batch[name].dtype.kind not in "fiub":
        raise UserError(f"normalise: array {name!r} is {batch[name].dtype.name}, not numbers")
    return batch[name]


def _normalised(name: str, batch: Batch, by: Moments) -> np.ndarray:
    array = _numbers(name, batch)
    if by.mean.ndim and array.shape[-1:] != by.mean.shape:
        raise UserError(f"normalise: array {name!r} has {array.shape[-1]} channels, the moments {len(by.mean)}")
    return (array.astype(np.float32) - by.mean) / by.std
