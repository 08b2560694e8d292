"""Batches: order, resumption, padding, shares of processes, the same bits however they are read, errors, clean ends."""

import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbig import checkpoint
from jaxbig.data import Loader, Position, compose
from jaxbig.errors import UserError
from jaxbig.objective import classify
from jaxbig.train import Run, Task, fit
from jaxbig.tune.full import full


def dataset(n=10):
    return {"image": np.arange(n * 4, dtype=np.float32).reshape(n, 2, 2), "label": np.arange(n)}


def labels_of(loader, epoch, start=0):
    return [batch["label"].tolist() for batch in loader.epoch(epoch, start)]


def noisy(batch, draw):
    return batch | {"image": batch["image"] + draw.normal("noise", (2, 2)), "epoch": np.full(len(draw.rows), 1)}


class Squares:
    """A source that is no array: it says which thread has read it, and may fail."""

    def __init__(self, n=40, fails=-1):
        self.n, self.fails, self.readers = n, fails, set()

    def __len__(self):
        return self.n

    def batch(self, index):
        self.readers.add(threading.current_thread().name)
        # The first batches take longest, so that the later ones are ready before them.
        time.sleep(0.01 / (1 + index.min()))
        if self.fails in index:
            raise UserError(f"squares: row {self.fails} is damaged; write it again")
        return {"label": index, "square": index**2}


def same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert np.asarray(value).dtype == other[name].dtype
            np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_epochs_differ_seeds_differ_and_repeat(remainder):
    loader = Loader(dataset(), 3, seed=1, remainder=remainder)
    assert labels_of(loader, 0) == labels_of(Loader(dataset(), 3, seed=1, remainder=remainder), 0)
    assert labels_of(loader, 0) != labels_of(loader, 1)
    assert labels_of(loader, 0) != labels_of(Loader(dataset(), 3, seed=2, remainder=remainder), 0)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_resumes_at_the_very_batch_from_a_serialised_position(remainder, threads):
    loader = Loader(dataset(), 3, remainder=remainder, threads=threads)
    position, seen = Position(), []
    while position.epoch < 3:
        restored = Position(**json.loads(json.dumps(position._asdict())))
        seen.append(next(iter(loader.epoch(restored.epoch, restored.step)))["label"].tolist())
        position = loader.advance(position)
    assert seen == [batch for epoch in range(3) for batch in labels_of(loader, epoch)]


def test_padding_keeps_one_shape_and_counts_each_example_once():
    loader = Loader(dataset(), 4, remainder="pad")
    batches = list(loader.epoch(5))
    assert {batch["image"].shape for batch in batches} == {(4, 2, 2)}
    assert len(batches) == loader.steps == 3
    counted = np.concatenate([batch["label"][batch["mask"] == 1] for batch in batches])
    assert sorted(counted.tolist()) == list(range(10))
    for batch in batches:
        np.testing.assert_array_equal(batch["image"][:, 0, 0], batch["label"] * 4)


def test_drop_leaves_out_different_examples_in_each_epoch():
    loader = Loader(dataset(), 4)
    left_out = [set(range(10)) - {label for batch in labels_of(loader, epoch) for label in batch} for epoch in range(4)]
    assert all(len(some) == 2 for some in left_out)
    assert len({tuple(sorted(some)) for some in left_out}) > 1


def test_index_tells_what_epoch_yields():
    loader = Loader(dataset(), 4, seed=4, remainder="pad")
    index, mask = loader.index(2)
    for step, batch in enumerate(loader.epoch(2)):
        np.testing.assert_array_equal(batch["label"], index[step])
        np.testing.assert_array_equal(batch["mask"], mask[step])


def test_a_source_is_read_as_the_arrays_it_stands_for():
    rows = np.arange(40)
    same([*Loader(Squares(), 8).epoch(1)], [*Loader({"label": rows, "square": rows**2}, 8).epoch(1)])


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_processes_share_the_very_batches_of_one(processes, remainder):
    options = {"seed": 5, "remainder": remainder, "augment": noisy}
    one = [*Loader(dataset(22), 8, **options).epoch(3, start=1)]
    loaders = [Loader(dataset(22), 8, process_index=i, process_count=processes, **options) for i in range(processes)]
    parts = zip(*(loader.epoch(3, start=1) for loader in loaders), strict=True)
    same([{name: np.concatenate([part[name] for part in some]) for name in some[0]} for some in parts], one)
    np.testing.assert_array_equal(np.concatenate([loader.index(3)[0] for loader in loaders], 1), loader_index(options))


def loader_index(options):
    return Loader(dataset(22), 8, **options).index(3)[0]


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_bit(threads):
    source = Squares()
    plain = Loader(Squares(), 4, seed=2, augment=lambda batch, draw: batch | {"noise": draw.uniform("noise")})
    read = Loader(source, 4, seed=2, augment=plain.augment, threads=threads, ahead=4)
    same([*read.stream(Position(0, 3), 3)], [*plain.epoch(0, 3), *plain.epoch(1), *plain.epoch(2)])
    assert not any(name == threading.current_thread().name for name in source.readers)


def test_a_start_reads_nothing_before_it():
    source = Squares(fails=int(Loader(Squares(), 4).index(0)[0][4, 0]))
    for threads in (0, 2):
        assert len([*Loader(source, 4, threads=threads).epoch(0, start=5)]) == 5
        assert [*Loader(source, 4, threads=threads).epoch(0, start=10)] == []


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_while_reading_comes_out_as_it_is_at_its_turn(threads):
    fails = int(Loader(Squares(), 4).index(0)[0][3, 0])
    batches = Loader(Squares(fails=fails), 4, threads=threads).epoch(0)
    assert len([next(batches) for _ in range(3)]) == 3
    with pytest.raises(UserError) as caught:
        next(batches)
    assert str(caught.value) == f"squares: row {fails} is damaged; write it again"
    assert no_readers_left()


def no_readers_left():
    """The threads of a pool that was told to end are gone as soon as each has done what it is at."""
    until = time.monotonic() + 10
    while any("prefetch" in thread.name for thread in threading.enumerate()):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_leaving_early_leaves_no_thread_behind():
    loader, before = Loader(Squares(), 4, threads=3), threading.active_count()
    batches = loader.epoch(0)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert no_readers_left()
    for _ in loader.epoch(0):
        break
    gc.collect()
    assert no_readers_left()
    assert threading.active_count() == before


PROGRAM = """
import multiprocessing, os, sys
import numpy as np
from jaxbig.data import Loader, Position, compose
from jaxbig.errors import UserError
from jaxbig.objective import classify
from jaxbig.train import Run, Task, fit
from jaxbig.tune.full import full

class Pids:
    fails = None
    def __len__(self):
        return 40
    def batch(self, index):
        if self.fails in index:
            raise UserError("pids: no such row; give another")
        return {"row": index, "text": np.array([str(i) for i in index], object), "x": index[:, None] * np.float32(0.1)}

def augment(batch, draw):
    return batch | {"noise": draw.normal("noise", (3,)), "pid": np.full(len(draw.rows), os.getpid())}

def main():
    plain = [*Loader(Pids(), 4, augment=augment).stream(Position(0, 3), 2)]
    for workers in (1, 2):
        read = [*Loader(Pids(), 4, augment=augment, workers=workers, threads=workers - 1).stream(Position(0, 3), 2)]
        assert len(read) == len(plain) == 17
        for one, other in zip(read, plain, strict=True):
            assert one.keys() == other.keys()
            for name in ("row", "text", "x", "noise"):
                assert type(one[name]) is np.ndarray and one[name].dtype == other[name].dtype, type(one[name])
                np.testing.assert_array_equal(one[name], other[name])
        pids = {int(batch["pid"][0]) for batch in read}
        assert len(pids) == workers and os.getpid() not in pids
    batches = Loader(Pids(), 4, workers=2).epoch(0)
    next(batches)
    batches.close()
    assert not multiprocessing.active_children()
    broken = Pids()
    broken.fails = int(Loader(Pids(), 4).index(0)[0][1, 0])
    try:
        for step, _ in enumerate(Loader(broken, 4, workers=2).epoch(0)):
            pass
    except UserError as error:
        print(step, error, len(multiprocessing.active_children()))

if __name__ == "__main__":
    main()
"""


def run(tmp_path, program):
    """In a file of its own: workers import the program that has started them."""
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "-W", "error", tmp_path / "program.py"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_worker_processes_change_no_bit_and_end(tmp_path):
    done = run(tmp_path, PROGRAM)
    assert done.stdout == "0 pids: no such row; give another 0\n", done.stderr[-3000:]
    assert done.returncode == 0
    assert "leaked" not in done.stderr


KILLED = """
import multiprocessing, os, signal
import numpy as np
from jaxbig.data import Loader

def main():
    batches = Loader({"x": np.arange(4000)}, 4, workers=2, shuffle=False).epoch(0)
    first = [next(batches) for _ in range(2)]  # one of each worker: both run
    pids = [process.pid for process in multiprocessing.active_children()]
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    print(*[int(next(batches)["x"][0]) for _ in range(20)][-1:], *pids, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_worker_processes_outlive_ctrl_c_but_not_their_parent(tmp_path):
    last, *pids = map(int, run(tmp_path, KILLED).stdout.split())
    assert last == 84
    assert len(pids) == 2
    until = time.monotonic() + 10
    while any(runs(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


def runs(pid):
    """Whether there is such a process; one that has ended may stay until it is buried by whoever is in charge."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("batches", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_read_ahead_and_augmented_a_resumed_run_ends_in_the_same_bits(tmp_path, batches):
    def fitted(source, epochs, **options):
        data = Loader(source, 4, threads=options.pop("threads", 0), augment=compose(noisy))
        start = full().init(jax.random.key(0), {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}, {})
        task = Task(classify(Flat()), full(), optax.sgd(0.1), data)
        return fit(task, start, jax.random.key(0), Run(epochs, quiet=True, **options)).split.train

    arrays = {"image": np.arange(48, dtype=np.float32).reshape(12, 2, 2) / 48, "label": np.arange(12) % 3}
    plain = fitted(arrays, 3)
    with pytest.raises(KeyboardInterrupt):
        fitted(Interrupted(arrays, batches), 3, threads=2, workdir=tmp_path)
    # The signal comes while a thread reads ahead, so where the run has stopped differs from time to time.
    assert 1 <= (checkpoint.latest(tmp_path / "checkpoints") or 0) < 9
    resumed = fitted(arrays, 3, threads=2, workdir=tmp_path, resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed, plain)


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x):
        # Named as its parameters are, so that they can be written down without it.
        kernel = self.param("kernel", nn.initializers.zeros, (4, 3))
        return x.reshape(len(x), -1) @ kernel + self.param("bias", nn.initializers.zeros, (3,))


class Interrupted:
    """Arrays whose reader gets Ctrl-C when it has read so many batches."""

    def __init__(self, arrays, batches):
        self.arrays, self.batches, self.reads = arrays, batches, itertools.count(1)

    def __len__(self):
        return len(self.arrays["label"])

    def batch(self, index):
        if next(self.reads) == self.batches:
            os.kill(os.getpid(), signal.SIGINT)
        return {name: array[index] for name, array in self.arrays.items()}


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: Loader({"a": np.zeros(3), "b": np.zeros(4)}, 2), "'b': 4"),
        (lambda: Loader({}, 2), "common number"),
        (lambda: Loader({"a": np.zeros(3)}, 4), "remainder='pad'"),
        (lambda: Loader({"a": np.zeros(3)}, 0), "batch_size=0"),
        (lambda: Loader({"mask": np.zeros(3)}, 2, remainder="pad"), "'mask'"),
        (lambda: Loader({"a": np.zeros(3)}, 2, remainder="keep"), "'keep'"),  # pyright: ignore[reportArgumentType]
        (lambda: Loader({"a": np.zeros(3)}, 2, threads=-1), "threads=-1"),
        (lambda: Loader({"a": np.zeros(3)}, 2, process_index=2, process_count=2), "from 0 to 1"),
        (lambda: Loader({"a": np.zeros(4)}, 3, process_count=2), "a multiple of 2"),
        (lambda: Loader(5, 2), "int is no source"),
        (lambda: next(Loader(dataset(), 2, augment=lambda b, d: {"x": b["label"][1:]}).epoch(0)), "1 examples of 2"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)
