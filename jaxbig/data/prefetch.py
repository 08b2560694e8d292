"""Batches put on the device before they are needed, and the time that was spent waiting for them."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxbig.errors import UserError


class Prefetch:
    """An iterator over ``put(batch)`` that stays up to `ahead` batches in front of its consumer.

    `put` starts a copy and returns (as `jax.device_put` does), so the copies of the next batches run beside the
    computation on the present one. An error of `batches` is raised at its own turn, after the batches before it.

    Args:
        batches: from the host, e.g. ``loader.epoch(0)``.
        put: batch -> the batch where the step wants it, e.g. a placement's ``batch`` for a mesh.
        ahead: batches that are put before they are asked for; 0: none.
        idle: asked when a batch is at hand: whether the device has nothing else to do. Where the host dispatches steps
            ahead of the device, time spent in here while steps are queued costs nothing. None: it never has.

    Attributes:
        waited: seconds spent in here for batches at whose end the device was idle: the most that the device can have
            waited for data; set it to 0 when you like.

    Raises:
        UserError: `ahead` is negative.

    Example:
        >>> import numpy as np
        >>> with Prefetch(iter([{"x": np.ones(2)}, {"x": np.zeros(2)}])) as batches:
        ...     print([float(batch["x"].sum()) for batch in batches], batches.waited > 0)
        [2.0, 0.0] True
    """

    def __init__(
        self,
        batches: Iterator[Any],
        put: Callable[[Any], Any] = jax.device_put,
        ahead: int = 2,
        idle: Callable[[], bool] | None = None,
    ):
        if ahead < 0:
            raise UserError(f"Prefetch: ahead={ahead}; use 0 or more")
        self._batches, self._put, self._ahead = iter(batches), put, ahead
        self._ready: deque[Any] = deque()
        self._end: Exception | None = None
        self._idle = idle
        self.waited = 0.0

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> Any:
        since = time.perf_counter()
        try:
            while self._end is None and len(self._ready) <= self._ahead:
                self._fetch()
            if not self._ready:
                raise self._end or StopIteration
            return self._ready.popleft()
        finally:
            if self._idle is None or self._idle():
                self.waited += time.perf_counter() - since

    def close(self) -> None:
        """Drops what is ready and ends the threads and processes behind `batches`. Closing twice is harmless."""
        self._ready.clear()
        self._end = StopIteration()
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _fetch(self) -> None:
        try:
            self._ready.append(self._put(next(self._batches)))
        except Exception as error:  # noqa: BLE001 - kept, and raised when the batches before it have been used
            self._end = error
