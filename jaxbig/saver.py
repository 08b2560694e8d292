"""Checkpoints in the background: a step waits for a copy of the state, not for the disk."""

import threading
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import jax

from jaxbig import checkpoint
from jaxbig.tree import PyTree


class Saver:
    """Saves one checkpoint at a time in a thread. Errors of a save are raised by the next call.

    Where several processes hold the arrays, `save` waits for the disk.

    Args:
        folder, keep_last, keep_best, apart: as for `jaxbig.checkpoint.save`.
        background: False: `save` returns when the checkpoint is on disk.

    Attributes:
        blocked: seconds that `save` and `wait` have held their callers.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> folder = tempfile.mkdtemp()
        >>> with Saver(folder, keep_last=1) as saver:
        ...     for step in range(3):
        ...         saver.save(step, {"w": jnp.full(2, step)})
        >>> checkpoint.steps(folder), checkpoint.restore(folder)["w"].tolist()
        ([2], [2, 2])
    """

    def __init__(
        self,
        folder: str | Path,
        keep_last: int | None = None,
        keep_best: str | None = None,
        apart: Sequence[str] = (),
        background: bool = True,
    ):
        self.folder, self.apart = folder, apart
        self.options: dict[str, Any] = {"keep_last": keep_last, "keep_best": keep_best}
        self.background = background and jax.process_count() == 1
        self.blocked = 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, tree: PyTree, manifest: Mapping[str, Any] | None = None) -> None:
        """Take copies of `tree` and `manifest`, which may be donated or changed when this returns, and write them.

        Raises:
            UserError: as `jaxbig.checkpoint.save`, for this save or the one before.
        """
        self.wait()
        since = time.perf_counter()
        copy, manifest = checkpoint.snapshot(tree, self.apart), deepcopy(manifest)  # both may change while we write
        if self.background:
            self._thread = threading.Thread(target=self._write, args=(step, copy, manifest), name="jaxbig saver")
            self._thread.start()
        else:
            checkpoint.save(self.folder, step, copy, manifest, **self.options)
        self.blocked += time.perf_counter() - since

    def wait(self) -> None:
        """Return when all that was saved is on disk.

        Raises:
            UserError: the last save failed.
        """
        since = time.perf_counter()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.blocked += time.perf_counter() - since
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:  # what is on its way is finished; the error that ends the run goes first
            self._thread.join()

    def _write(self, step: int, copy: checkpoint.Snapshot, manifest: Mapping[str, Any] | None) -> None:
        try:
            checkpoint.save(self.folder, step, copy, manifest, **self.options)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asks next
            self._error = error
