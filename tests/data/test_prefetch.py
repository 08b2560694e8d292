"""Prefetching: order, how far ahead, meshes, waiting, errors at their turn, clean ends."""

import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxbig.data import Loader, Prefetch
from jaxbig.errors import UserError
from jaxbig.placement import over_mesh


class Batches:
    """Counts what was taken from it, and whether it was closed."""

    def __init__(self, count, fails=-1):
        self.count, self.fails, self.taken, self.closed = count, fails, 0, False

    def __iter__(self):
        return self

    def __next__(self):
        if self.taken == self.fails:
            raise UserError("batches: the third is damaged; write it again")
        if self.taken == self.count:
            raise StopIteration
        self.taken += 1
        return {"x": np.full(2, self.taken)}

    def close(self):
        self.closed = True


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
def test_all_come_in_order_and_stay_ahead(ahead):
    batches = Batches(10)
    prefetch, seen = Prefetch(batches, ahead=ahead), []
    for batch in prefetch:
        assert isinstance(batch["x"], jax.Array)
        seen.append(int(batch["x"][0]))
        assert batches.taken == min(10, len(seen) + ahead)
    assert seen == [*range(1, 11)]
    assert next(prefetch, None) is None


def test_batches_lie_where_put_says():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    loader = Loader({"x": np.arange(8.0)}, 4, threads=1)
    put = over_mesh(mesh).batch
    with Prefetch(loader.epoch(0), put) as batches:
        ours = [*batches]
    assert all(batch["x"].sharding == put({"x": np.zeros(4)})["x"].sharding for batch in ours)
    np.testing.assert_array_equal(
        np.concatenate([batch["x"] for batch in ours]), np.concatenate([batch["x"] for batch in loader.epoch(0)])
    )


def test_waiting_is_the_consumers_and_not_its_own_work(monkeypatch):
    now = 0.0

    def batches():
        nonlocal now
        for seconds in (2.0, 3.0):
            now += seconds
            yield seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    prefetch = Prefetch(batches(), put=lambda batch: batch, ahead=0)
    for _ in prefetch:
        now += 10.0
    assert prefetch.waited == 5.0


def test_what_passes_while_the_device_is_busy_is_no_waiting(monkeypatch):
    now = 0.0

    def batches():
        nonlocal now
        for seconds in (2.0, 3.0, 4.0):
            now += seconds
            yield seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    idle = iter([True, False, True, False])
    prefetch = Prefetch(batches(), put=lambda batch: batch, ahead=0, idle=lambda: next(idle))
    assert [(batch, prefetch.waited) for batch in prefetch] == [(2.0, 2.0), (3.0, 2.0), (4.0, 6.0)]


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_an_error_waits_for_the_batches_before_it(ahead):
    prefetch = Prefetch(Batches(5, fails=3), ahead=ahead)
    assert [int(next(prefetch)["x"][0]) for _ in range(3)] == [1, 2, 3]
    for _ in range(2):
        with pytest.raises(UserError, match="the third is damaged"):
            next(prefetch)


def test_leaving_early_closes_what_is_behind():
    batches = Batches(5)
    with Prefetch(batches) as prefetch:
        next(prefetch)
    assert batches.closed
    assert next(prefetch, None) is None
    prefetch.close()
    with pytest.raises(UserError, match="ahead=-1"):
        Prefetch(batches, ahead=-1)
