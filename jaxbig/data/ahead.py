"""Reading ahead: threads or processes make the next batches while the present one is used. Grain does the work."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection

import numpy as np

from jaxbig.data.array import Batch


def read_ahead(
    read: Callable[[int], Batch], count: int, *, start: int = 0, threads: int = 0, workers: int = 0, ahead: int = 2
) -> Iterator[Batch]:
    """``read(start) ... read(count - 1)``, in order, some of them before they are asked for.

    Neither number below changes what is read, and `start` costs nothing. An error in a thread or a process is raised
    here, at its turn. Threads end, and processes are ended, with the iterator: when it is exhausted, closed or dropped.

    Args:
        read: number of a batch -> batch; called from several threads at once, so it must not change anything. For
            processes it has to be picklable, as what it holds is copied into each of them.
        count: number of batches.
        start: the first one to read.
        threads: in this process, or in each worker; 0: `read` is called when its batch is asked for.
        workers: processes. Each is a new interpreter, which takes seconds to start: for long runs, and for work that
            holds Python's lock. A script that uses them needs ``if __name__ == "__main__":``.
        ahead: batches that are held ready, by all threads of a process together.

    Returns:
        iterator over the batches.

    Example:
        >>> list(read_ahead(lambda number: {"x": number}, 5, start=3, threads=2))
        [{'x': 3}, {'x': 4}]
    """
    if start >= count:
        return
    if not threads and not workers:
        for number in range(start, count):
            yield read(number)
        return
    # Only here, because it is slow to import and most small experiments never read ahead.
    import grain
    from absl import flags

    # A buffer smaller than the number of threads would leave some of them idle.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads) if threads else 0)
    batches = grain.MapDataset.range(start, count).map(read).to_iter_dataset(options)
    if workers:
        # Grain reads absl's flags, which raise unless a program has parsed its command line with absl.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(min(workers, count - start), per_worker_buffer_size=max(ahead, 1))
        batches = batches.mp_prefetch(processes, _begin)
    iterator = iter(batches)
    try:
        yield from map(_plain, iterator) if workers else iterator
    finally:
        iterator.close()


def _begin(worker: int, workers: int) -> None:
    """In a worker, first of all: it lives as long as the process that reads from it, and no longer."""
    # Ctrl-C reaches every process of a terminal; the one that trains still wants the batches up to its checkpoint.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        # Not sys.exit, which would end this thread alone.
        os._exit(1)


def _plain(batch: Batch) -> Batch:
    """Grain hands over the memory that processes share as a subclass of ndarray, which shows in types and `repr`."""
    return {name: np.asarray(array) for name, array in batch.items()}
