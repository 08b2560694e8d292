"""Where a text ends that nobody but its reader can end: strings, looked for between the device's steps."""

from collections.abc import Callable

import numpy as np

from jaxbig.errors import UsageError


class Stops:
    """Hands out new tokens of each row, up to the one with which a stop string is complete.

    Args:
        batch: rows.
        stop: the strings; none: nothing is decoded.
        decoded: ids -> text.

    Raises:
        UsageError: strings without `decoded`, or an empty string.

    Example:
        >>> stops = Stops(1, ("b",), lambda ids: "".join(map(chr, ids)))
        >>> tokens = np.array([[97, 98, 99, 0]])
        >>> stops.take(tokens, np.array([1]))[0], stops.take(tokens, np.array([3]))[0]
        ([[97]], [[98]])
    """

    def __init__(self, batch: int, stop: tuple[str, ...], decoded: Callable[[list[int]], str] | None):
        if isinstance(stop, str) or not all(stop):
            raise UsageError("stop has an empty string, which every text contains; give other strings or none")
        if stop and decoded is None:
            raise UsageError("stop strings need decoded, a function from ids to text")
        self._stop, self._decoded = stop, decoded
        self._taken = [0] * batch
        self._stopped = np.zeros(batch, bool)

    def take(self, tokens_BN: np.ndarray, counts_B: np.ndarray) -> tuple[list[list[int]], np.ndarray]:
        """New tokens since the last call.

        Args:
            tokens_BN: all tokens.
            counts_B: how many of them there are.

        Returns:
            (a list a row, bool [B]: the rows that a string has ended).
        """
        new = []
        for row, count in enumerate(counts_B.tolist()):
            start = self._taken[row]
            if self._stopped[row]:
                new.append([])
                continue
            ids = tokens_BN[row, :count].tolist()
            end = self._end(ids, start)
            self._stopped[row] = end is not None
            self._taken[row] = count if end is None else end
            new.append(ids[start : self._taken[row]])
        return new, self._stopped

    def _end(self, ids: list[int], start: int) -> int | None:
        """How many tokens complete a string first; None: none does."""
        if self._decoded is None or not self._stop or len(ids) == start or not self._found(ids):
            return None
        return next(count for count in range(start + 1, len(ids) + 1) if self._found(ids[:count]))

    def _found(self, ids: list[int]) -> bool:
        text = self._decoded(ids) if self._decoded else ""
        return any(stop in text for stop in self._stop)
