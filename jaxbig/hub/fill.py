"""Tensors of a file as leaves of a tree: read in blocks to where they shall stay, turned and cast on the way.

Legend: a *turn* is how a file's axes become the leaf's, see `jaxbig.models.family.Tensor`.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from jaxbig.errors import UserError
from jaxbig.hub.safetensors_file import Stored

BLOCK = 4 << 20  # bytes: what is read, looked at and cast while it is in the processor's cache
ROWS = 512  # of a tensor that is turned: what is worth a thread of its own
TURNED = 16 << 20  # bytes of it at a time
FLAT = 4 << 20  # numbers of one that is not: what is worth a thread of its own
THREADS = 8
ALIGNED = 64  # bytes: arrays that begin so are taken by XLA's CPU devices as they are, without a copy


class Source(NamedTuple):
    """What fills a leaf.

    Attributes:
        tensors: one, or those of a stack's layers.
        stacked: whether the leaf has a first axis for them.
        turn: how their axes become the leaf's.
        shape: the leaf's.
        dtype: the leaf's.
    """

    tensors: tuple[Stored, ...]
    stacked: bool
    turn: str
    shape: tuple[int, ...]
    dtype: Any


def order(turn: str, ndim: int) -> tuple[int, ...]:
    """The file's axis of each of the leaf's axes.

    Example:
        >>> order("matrix", 2), order("conv", 4), order("same", 1)
        ((1, 0), (2, 3, 1, 0), (0,))
    """
    if turn == "same":
        return tuple(range(ndim))
    return (*range(2, ndim), 1, 0)


def stored_shape(shape: Sequence[int], turn: str) -> tuple[int, ...]:
    """The tensor's shape of a leaf's.

    Example:
        >>> stored_shape((5, 4, 3, 8), "conv")
        (8, 3, 5, 4)
    """
    axes = order(turn, len(shape))
    return tuple(shape[axes.index(k)] for k in range(len(shape)))


def leaf_of(source: Source, sharding: Any = None, finite: bool = True) -> jax.Array:
    """A leaf, read from its files.

    Args:
        source: what fills it.
        sharding: where it goes: each device's part is read by itself. None: JAX's default device.
        finite: whether NaN and infinity are errors.

    Returns:
        the array. On the CPU it is the very memory that was read into.

    Raises:
        UserError: a file ends early, or a number is not finite.
    """
    if sharding is None:
        out = _empty(source.shape, source.dtype)
        _fill(out, source, tuple(slice(0, n) for n in source.shape), finite)
        return jax.device_put(out)

    def part(index):
        its = tuple(slice(*cut.indices(n)[:2]) for cut, n in zip(index, source.shape, strict=True))
        out = _empty(tuple(cut.stop - cut.start for cut in its), source.dtype)
        _fill(out, source, its, finite)
        return out

    return jax.make_array_from_callback(source.shape, sharding, part)


def _empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    dtype = np.dtype(dtype)
    raw = np.empty(math.prod(shape) * dtype.itemsize + ALIGNED, np.uint8)
    first = -raw.ctypes.data % ALIGNED
    return raw[first : raw.size - ALIGNED + first].view(dtype).reshape(shape)


def _fill(out: np.ndarray, source: Source, index: Sequence[slice], finite: bool) -> None:
    """Fills `out`, the part of the leaf at `index`."""
    if not source.stacked:
        fill_tensor(out, source.tensors[0], source.turn, index, finite)
        return
    for i, layer in enumerate(range(index[0].start, index[0].stop)):
        fill_tensor(out[i], source.tensors[layer], source.turn, index[1:], finite)


def fill_tensor(
    out: np.ndarray, tensor: Stored, turn: str = "same", index: Sequence[slice] | None = None, finite: bool = False
) -> None:
    """Reads a tensor, or the part of it at `index` (of the leaf's axes), into an array that lies there already.

    Args:
        out: C-contiguous; its dtype is cast to.
        tensor: where it is.
        turn: how its axes become those of `out`.
        index: one slice for each axis of the leaf; None: all of it.
        finite: whether NaN and infinity are errors.

    Raises:
        UserError: the file ends early, or a number is not finite.
    """
    axes = order(turn, len(tensor.shape))
    cuts = [slice(0, n) for n in tensor.shape]
    for cut, k in zip(index or (), axes, strict=False):
        cuts[k] = cut
    if axes == tuple(range(len(axes))) and cuts == [slice(0, n) for n in tensor.shape]:
        _shared(lambda first, last: _fill_flat(out.reshape(-1), tensor, (first, last), finite), 0, out.size, FLAT)
    else:
        there = out.transpose(np.argsort(axes))  # with the file's axes
        rows = cuts[0].start, cuts[0].stop
        _shared(lambda first, last: _fill_rows(there, tensor, (first, last), cuts, finite), *rows, ROWS)


def _shared(work: Callable[[int, int], None], start: int, stop: int, unit: int) -> None:
    """``work(start, stop)``, in several threads where there are several units of work: reading, casting and copying
    leave Python to others meanwhile."""
    units = -(-(stop - start) // unit)
    count = min(units, THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else THREADS)
    if count < 2:
        work(start, stop)
        return
    ends = [min(stop, start + unit * (units * i // count)) for i in range(count + 1)]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, ends[:-1], ends[1:]))


def _fill_rows(there: np.ndarray, tensor: Stored, rows: tuple[int, int], cuts: Sequence[slice], finite: bool) -> None:
    """Rows of a tensor, cut along its other axes, into the array that has its axes."""
    row = math.prod(tensor.shape[1:])
    many = max(1, min(ROWS, TURNED // max(1, row * tensor.dtype.itemsize)))
    scratch = np.empty((min(many, rows[1] - rows[0]), *tensor.shape[1:]), tensor.dtype)
    with tensor.file.open("rb", buffering=0) as file:
        for first in range(*rows, many):
            block = scratch[: rows[1] - first]
            _read(file.fileno(), block, tensor, tensor.start + first * row * tensor.dtype.itemsize)
            if finite:
                _check(block, tensor)
            _put(there, first - cuts[0].start, _cast(block[:, *cuts[1:]], there.dtype, tensor, finite))


def _put(there: np.ndarray, at: int, block: np.ndarray) -> None:
    """``there[at : at + len(block)] = block``; where `there` is a matrix that is turned, JAX turns the block, which is
    several times quicker at that than NumPy."""
    bits = {2: np.dtype("u2"), 4: np.dtype("u4")}.get(block.dtype.itemsize)  # 64 bits JAX would narrow
    if bits is None or there.ndim != 2 or not there.T.flags.c_contiguous or not (cpu := _cpu()):
        there[at : at + len(block)] = block
        return
    there.T.view(bits)[:, at : at + len(block)] = np.asarray(jax.device_put(block.view(bits).T, cpu))


@functools.cache
def _cpu() -> Any:
    """The host as a device of JAX; None where it is none, as with JAX_PLATFORMS=cuda."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _fill_flat(out: np.ndarray, tensor: Stored, span: tuple[int, int], finite: bool) -> None:
    """Numbers of a tensor whose axes stay."""
    size = tensor.dtype.itemsize
    many = BLOCK // size
    same = out.dtype == tensor.dtype
    scratch = None if same else np.empty(min(many, span[1] - span[0]), tensor.dtype)
    with tensor.file.open("rb", buffering=0) as file:
        for first in range(*span, many):
            its = out[first : min(first + many, span[1])]
            block = its if scratch is None else scratch[: len(its)]
            _read(file.fileno(), block, tensor, tensor.start + first * size)
            if finite:
                _check(block, tensor)
            if not same:
                its[...] = _cast(block, out.dtype, tensor, finite)


def blocks(tensor: Stored, dtype: Any = None) -> Iterator[np.ndarray]:
    """A tensor's numbers in the file's order, a block at a time, cast; a block is good until the next is asked for.

    Raises:
        UserError: the file ends early, or a number is finite and not one of `dtype`.
    """
    scratch = np.empty(min(BLOCK // tensor.dtype.itemsize, tensor.size), tensor.dtype)
    with tensor.file.open("rb", buffering=0) as file:
        for first in range(0, tensor.size, max(1, scratch.size)):
            block = scratch[: min(scratch.size, tensor.size - first)]
            _read(file.fileno(), block, tensor, tensor.start + first * tensor.dtype.itemsize)
            yield block if dtype is None else _cast(block, np.dtype(dtype), tensor, _finite(block))


def _read(descriptor: int, block: np.ndarray, tensor: Stored, at: int) -> None:
    left = block.reshape(-1).view(np.uint8).data
    while left:
        try:
            count = os.preadv(descriptor, [left], at)
        except OSError as error:
            raise UserError(f"{tensor.file}: cannot be read ({error.strerror})") from error
        if not count:
            raise UserError(f"{tensor.file}: ends before {tensor.name} does; it was changed while it was read")
        left, at = left[count:], at + count


def _cast(block: np.ndarray, dtype: Any, tensor: Stored, finite: bool) -> np.ndarray:
    if block.dtype == dtype:
        return block
    with np.errstate(all="ignore"):
        cast = block.astype(dtype)
    if finite and not _finite(cast):
        raise UserError(
            f"{tensor.file}: {tensor.name} holds numbers too large for {np.dtype(dtype)}; use bfloat16 or float32"
        )
    return cast


def _check(block: np.ndarray, tensor: Stored) -> None:
    if not _finite(block):
        raise UserError(
            f"{tensor.file}: {tensor.name} holds NaN or infinity; pass allow_nonfinite=True if that is meant to be"
        )


# Of weights' dtypes: all bits but the sign, and the bits of infinity; what is above them is NaN.
_BITS = {
    np.dtype("f2"): ("u2", 0x7FFF, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): ("u2", 0x7FFF, 0x7F80),
    np.dtype("f4"): ("u4", 0x7FFF_FFFF, 0x7F80_0000),
    np.dtype("f8"): ("u8", 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
}


def _finite(block: np.ndarray) -> bool:
    """Whether all are finite; by their bits, which is several times quicker than `numpy.isfinite` for 16-bit floats."""
    if block.dtype in _BITS:
        code, rest, infinity = _BITS[block.dtype]
        bits = np.ascontiguousarray(block).view(code)
        return bool(np.bitwise_and(bits, bits.dtype.type(rest)).max(initial=0) < infinity)
    return True
