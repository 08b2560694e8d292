"""Blocks of GGUF's formats as codes with a scale, and a shift where the format has one, for each group of inputs.

Every format here stores ``scale * code + shift`` for the numbers of a group, which run along a matrix's inputs. d and m
are float16, one a block; a K format has integers beside them that multiply them for each group of its block::

    Q4_0   32 codes of 4 bits, less 8               d
    Q4_1   32 codes of 4 bits                       d, m
    Q8_0   32 codes of 8 bits                       d
    Q4_K   8 groups of 32 codes of 4 bits           d * s, -m * t    s, t 6 bits
    Q6_K   16 groups of 16 codes of 6 bits, less 32 d * s            s 8 bits

Products of these are exact in float32 (d has 11 bits), so that ``scale * code + shift`` is rounded once, as ggml's own
arithmetic is: values are equal, bit by bit.

Legend of the shape suffixes: O outputs, I inputs, G groups of them, N blocks (of a whole matrix), S groups of a block.
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxbig.codes import Quantized
from jaxbig.shifted import Shifted

PLAIN = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


class Coded(NamedTuple):
    """A matrix as codes.

    Attributes:
        codes_OI: int8; or uint8 where the format has a shift.
        scale_OG: float32.
        shift_OG: float32, or None.
        bits: 4 or 8: what a code needs.
    """

    codes_OI: np.ndarray
    scale_OG: np.ndarray
    shift_OG: np.ndarray | None
    bits: int


def plain(data: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor that is stored as numbers.

    Args:
        data: uint8, its bytes.
        name: "F32", "F16" or "BF16".
        shape: its lengths.

    Example:
        >>> plain(np.array([0, 60, 0, 64], np.uint8), "F16", (2,)).tolist()
        [1.0, 2.0]
    """
    return data.view(PLAIN[name]).reshape(shape)


def coded(data: np.ndarray, name: str, shape: tuple[int, ...]) -> Coded:
    """A tensor that is stored as blocks; its axes but the last are the rows of a matrix.

    Args:
        data: uint8, its bytes.
        name: of the format, such as "Q4_K".
        shape: its lengths.

    Returns:
        the codes, scales and shifts.

    Example:
        >>> half = np.array([2.0], np.float16).view(np.uint8)
        >>> block = np.concatenate([half, np.full(16, 0x97, np.uint8)])
        >>> found = coded(block, "Q4_0", (1, 32))
        >>> found.codes_OI[0, 15:17].tolist(), found.scale_OG.tolist()
        ([-1, 1], [[2.0]])
    """
    with np.errstate(all="ignore"):  # a damaged scale may be NaN; whoever reads looks
        codes_NSK, scale_NS, shift_NS, bits = _BLOCKS[name](data)
    width = shape[-1]
    rows = codes_NSK.size // width
    scale_OG = np.ascontiguousarray(scale_NS, np.float32).reshape(rows, -1)
    shift_OG = None if shift_NS is None else np.ascontiguousarray(shift_NS, np.float32).reshape(rows, -1)
    return Coded(codes_NSK.reshape(rows, width), scale_OG, shift_OG, bits)


def _halves(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at a byte of each block, in float32 [N, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Codes of 4 bits [N, S, 2 K] whose second half lies in the high bits of the first's bytes [N, S, K]."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _q4_0(data: np.ndarray) -> tuple[Any, ...]:
    blocks = data.reshape(-1, 18)
    return _nibbles(blocks[:, None, 2:]).view(np.int8) - np.int8(8), _halves(blocks, 0), None, 4


def _q4_1(data: np.ndarray) -> tuple[Any, ...]:
    blocks = data.reshape(-1, 20)
    return _nibbles(blocks[:, None, 4:]), _halves(blocks, 0), _halves(blocks, 2), 4


def _q8_0(data: np.ndarray) -> tuple[Any, ...]:
    blocks = data.reshape(-1, 34)
    return np.ascontiguousarray(blocks[:, None, 2:]).view(np.int8), _halves(blocks, 0), None, 8


def _q4_k(data: np.ndarray) -> tuple[Any, ...]:
    """d, m; 12 bytes with 8 scales and 8 minima: of the first four of each 6 bits of one byte, whose upper two bits are
    those of the last four, whose lower four lie together in the last bytes; 128 bytes, 32 for each pair of groups."""
    blocks = data.reshape(-1, 144)
    low, high, both = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (both & 15) | (low >> 6 << 4)], axis=1).astype(np.float32)
    minima = np.concatenate([high & 63, (both >> 4) | (high >> 6 << 4)], axis=1).astype(np.float32)
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return codes, _halves(blocks, 0) * scales, -(_halves(blocks, 2) * minima), 4


def _q6_k(data: np.ndarray) -> tuple[Any, ...]:
    """For each half of 128: the low four bits, 64 bytes for 4 runs of 32, and the high two, 32 bytes; then all 16
    scales, and d. Byte k of the low bits holds runs 0 and 2 for k < 32, else 1 and 3; of the high bits all four."""
    blocks = data.reshape(-1, 210)
    low = blocks[:, :128].reshape(-1, 2, 64)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=-1).reshape(-1, 2, 4, 32)
    high = high >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    codes = (low | (high << 4)).view(np.int8) - np.int8(32)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return codes.reshape(-1, 16, 16), _halves(blocks, 208) * scales, None, 8


_BLOCKS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q6_K": _q6_k}


def expanded(coded: Coded) -> np.ndarray:
    """The matrix in float32 [O, I].

    Example:
        >>> codes = np.array([[1, 2, 3, 4]], np.uint8)
        >>> expanded(Coded(codes, np.array([[1, 10]], np.float32), np.array([[0, 5]], np.float32), 4)).tolist()
        [[1.0, 2.0, 35.0, 45.0]]
    """
    rows, groups = coded.scale_OG.shape
    split = coded.codes_OI.reshape(rows, groups, -1).astype(np.float32)
    with np.errstate(all="ignore"):
        split *= coded.scale_OG[..., None]
        if coded.shift_OG is not None:
            split += coded.shift_OG[..., None]
    return split.reshape(coded.codes_OI.shape)


def weight_of(coded: Coded, turned: bool) -> Quantized | Shifted:
    """The matrix as a Weight that keeps its codes.

    Args:
        coded: the codes.
        turned: whether the leaf is [I, O], a kernel; else [O, I], a table whose rows are looked up.

    Returns:
        a `Quantized` of float32, its codes of 4 bits packed along the last axis (along I where O is odd); in a
        `Shifted` where the format has a shift. Parts are NumPy arrays.

    Example:
        >>> weight = weight_of(Coded(np.ones((4, 32), np.int8), np.ones((4, 1), np.float32), None, 4), turned=True)
        >>> weight.kind(), weight.shape, weight.codes.shape
        ('Quantized int4', (32, 4), (32, 2))
    """
    codes, scale, shift, bits = coded
    place = (lambda array: np.ascontiguousarray(array.T)) if turned else np.ascontiguousarray
    axis = None
    if bits == 4:
        along = 0 if turned and len(codes) % 2 == 0 else 1
        codes = codes.view(np.uint8) & 15
        first, second = (codes[0::2], codes[1::2]) if along == 0 else (codes[:, 0::2], codes[:, 1::2])
        codes = first | (second << 4)
        axis = -1 if along == int(not turned) else -2
    name = "int4" if bits == 4 else "int8"
    zero = None if shift is None else np.zeros((1, 1), np.uint8)  # codes without a sign
    base = Quantized(place(codes), place(scale), zero, name, axis, "float32")
    return base if shift is None else Shifted(base, place(shift))
