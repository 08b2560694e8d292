"""What a set of data holds, in numbers: ranges and moments of its arrays, classes, words, seconds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.source import ArraySource, Source
from jaxbig.data.statistics import Running, channels, in_order

_MOST_CLASSES = 100
_COLOURS = (2, 3, 4)


class ArraySummary:
    """One array of a source, taken in batch by batch.

    Attributes:
        shape: of one example's part; None where it varies.
        dtype: its name; "text" for strings.
        values: of the numbers, by colour where the last of three axes or more holds 2 to 4; of text, the
            characters a line.
        missing: numbers that are NaN, and objects that are None.
        counts: value -> how often, for integers [N] with up to 100 different ones, or few that are floating but whole.
        words, vocabulary: words of the text, and how many different ones.
        characters: how many different ones the text has.
        seconds: of recordings, one number an example.

    Example:
        >>> summary = ArraySummary()
        >>> summary.add("label", {"label": np.array([0, 1, 1])})
        >>> summary.shape, summary.dtype, dict(summary.counts or {}), float(summary.values.mean)
        ((), 'int64', {0: 1, 1: 2}, 0.6666666666666666)
    """

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        self.dtype = ""
        self.values = Running()
        self.missing = 0
        self.counts: Counter | None = Counter()
        self.words, self._vocabulary, self._letters = 0, set[str](), set[str]()
        self.seconds = Running()

    @property
    def vocabulary(self) -> int:
        """How many different words."""
        return len(self._vocabulary)

    @property
    def characters(self) -> int:
        """How many different characters."""
        return len(self._letters)

    def add(self, name: str, batch: Batch, rate: int | None = None) -> None:
        """Takes in the array `name` of a batch, recordings with their ``length`` where `rate` is given."""
        array = batch[name]
        self.shape, self.dtype = array.shape[1:], array.dtype.name
        if array.dtype.kind in "OUS":
            self._objects(array)
        elif name == "audio" and rate and "length" in batch:
            lengths = batch["length"]
            inside = np.arange(array.shape[1]) < lengths[:, None]
            self.shape = None
            self._numbers(array[inside], False)
            self.seconds.add(lengths / rate)
        else:
            self._numbers(array, array.ndim >= 4 and array.shape[-1] in _COLOURS)
        self._count(array)

    def _numbers(self, array: np.ndarray, colours: bool) -> None:
        flat = channels(array) if colours else array.reshape(-1)
        if flat.dtype.kind == "f":
            known = np.isfinite(flat).all(axis=-1) if colours else np.isfinite(flat)
            self.missing += int((~known).sum())
            flat = flat[known]
        self.values.add(flat)

    def _objects(self, array: np.ndarray) -> None:
        present = [value for value in array.ravel().tolist() if value is not None]
        self.missing += array.size - len(present)
        texts = [value for value in present if isinstance(value, str)]
        kinds = sorted({type(value).__name__ for value in present})
        self.dtype = "text" if len(texts) == len(present) else " or ".join(kinds)
        if not texts:
            return
        self.values.add(np.array([len(text) for text in texts]))
        for text in texts:
            words = text.split()
            self.words += len(words)
            self._vocabulary.update(words)
            self._letters.update(text)

    def _count(self, array: np.ndarray) -> None:
        if self.counts is None:
            return
        whole = array.dtype.kind in "iub" or (array.dtype.kind == "f" and bool(np.all(array == np.round(array))))
        if array.ndim != 1 or not whole:
            self.counts = None
            return
        values, counts = np.unique(array, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.counts[int(value)] += count
        if len(self.counts) > _MOST_CLASSES:
            self.counts = None


def summarise(source: Source, rate: int | None = None, most: int = 0) -> tuple[dict[str, ArraySummary], int]:
    """Takes a source in, batch by batch.

    Args:
        source: at least one example.
        rate: samples a second of its array ``audio``.
        most: examples to look at, evenly spaced, where they are not in memory; 0 looks at all.

    Returns:
        name -> summary, and how many examples were looked at.

    Example:
        >>> summaries, seen = summarise(ArraySource({"text": np.array(["a b", "a"], object)}))
        >>> seen, summaries["text"].dtype, summaries["text"].words, summaries["text"].vocabulary
        (2, 'text', 3, 2)
    """
    n = len(source)
    seen = n if isinstance(source, ArraySource) or not most else min(n, most)
    summaries: dict[str, ArraySummary] = {}
    for batch in in_order(source, np.arange(seen) * n // max(seen, 1)):
        for name in batch:
            summaries.setdefault(name, ArraySummary()).add(name, batch, rate)
    return summaries, seen


def class_names(counts: Mapping[int, int], names: Sequence[str]) -> dict[str, int]:
    """Counts by the names of the codes; codes without a name by themselves, -1 as missing.

    Example:
        >>> class_names({-1: 2, 0: 5, 7: 1}, ["cat"])
        {'cat': 5, '7': 1, 'missing': 2}
    """
    named: dict[Any, int] = {
        names[code] if 0 <= code < len(names) else str(code): counts[code]
        for code in sorted(counts)
        if code >= 0 or not names
    }
    return named | ({"missing": counts[-1]} if names and -1 in counts else {})
