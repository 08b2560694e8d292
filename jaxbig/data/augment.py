"""Augmentation: what changes from epoch to epoch in an example, a pure function of (seed, epoch, row).

An augmentation is ``(batch, draw) -> batch``: it changes no array that it is given, and takes all its random numbers
from the `Draw`, which makes them out of the numbers of the examples. So an example is augmented in the same way in any
batch, at any place of it, by any process or thread, and in another way in each epoch.
"""

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.errors import UsageError, UserError

# Of splitmix64: the odd integer next to 2^64 / golden ratio, and its finaliser's two multipliers.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclasses.dataclass(frozen=True)
class Draw:
    """Random numbers for the examples of a batch; those of one example are the same in any batch.

    The j-th number of row i is ``mix(mix(k + g (i + 1)) + g (j + 1))``, where mix is the finaliser of splitmix64, g its
    increment and k a hash of (seed, epoch, name). Integers and uniform numbers are the same bits on every machine.

    Args:
        seed, epoch: integers.
        rows: int64 [B], the position of each example in its source.
        path: stands before each name; `compose` gives each of its parts one of its own.

    Example:
        >>> one, other = Draw(0, 1, np.array([7, 5])), Draw(0, 1, np.array([3, 4, 5]))
        >>> bool(one.uniform("angle")[1] == other.uniform("angle")[2])
        True

    Reference:
        Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators"; the constants are Stafford's
        mix 13. We hash twice instead of running a stream, so that any number can be had without those before it.
    """

    seed: int
    epoch: int
    rows: np.ndarray
    path: str = ""

    def within(self, name: str) -> "Draw":
        """The same with `name` before each name: numbers that have nothing to do with these.

        Example:
            >>> draw = Draw(0, 0, np.arange(1))
            >>> bool(draw.within("first").uniform("x")[0] == draw.within("second").uniform("x")[0])
            False
        """
        return dataclasses.replace(self, path=f"{self.path}{name}/")

    def bits(self, name: str, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Uniform bits: uint64 [B, *shape].

        Example:
            >>> hex(Draw(0, 0, np.arange(1)).bits("x")[0])
            '0xfaa518eb7890239d'
        """
        digest = hashlib.blake2b(f"{self.seed}/{self.epoch}/{self.path}{name}".encode(), digest_size=8).digest()
        key = np.uint64(int.from_bytes(digest, "little"))
        rows = np.asarray(self.rows).astype(np.uint64)
        of_row = _mix(key + _STEP * (rows + np.uint64(1)))
        count = int(np.prod(shape, dtype=np.int64))
        each = _STEP * np.arange(1, count + 1, dtype=np.uint64)
        return _mix(of_row[:, None] + each).reshape(len(rows), *shape)

    def uniform(
        self, name: str, low: float | np.ndarray = 0.0, high: float | np.ndarray = 1.0, shape: tuple[int, ...] = ()
    ) -> np.ndarray:
        """Uniform numbers in [low, high): float64 [B, *shape]; the bounds may be arrays that broadcast to it.

        Example:
            >>> Draw(0, 0, np.arange(3)).uniform("x", -1, 1, shape=(2,)).shape
            (3, 2)
        """
        return low + (high - low) * ((self.bits(name, shape) >> np.uint64(11)) * 2.0**-53)

    def integers(
        self, name: str, low: int | np.ndarray, high: int | np.ndarray, shape: tuple[int, ...] = ()
    ) -> np.ndarray:
        """Uniform integers low ... high - 1: int64 [B, *shape]; the bounds may be arrays that broadcast to it.

        Example:
            >>> Draw(0, 0, np.arange(100)).integers("x", 3, np.full(100, 4)).max().item()
            3
        """
        return np.floor(self.uniform(name, low, high, shape)).astype(np.int64)

    def normal(self, name: str, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Standard normal numbers, float64 [B, *shape], by Box and Muller (1958): two of each pair of uniform ones.

        The same on every machine but for the last bits of its logarithm and cosine.

        Example:
            >>> bool(abs(Draw(0, 0, np.arange(1000)).normal("x").mean()) < 0.1)
            True
        """
        count = int(np.prod(shape, dtype=np.int64))
        half = (-(-count // 2),)
        radius = np.sqrt(-2 * np.log1p(-self.uniform(f"{name}/radius", shape=half)))
        angle = self.uniform(f"{name}/angle", high=2 * np.pi, shape=half)
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return both[:, :count].reshape(len(both), *shape)


Augmentation = Callable[[Batch, Draw], Batch]


@dataclasses.dataclass(frozen=True)
class Composed:
    """What `compose` returns: its `parts` in turn."""

    parts: tuple[Augmentation, ...]

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        for number, part in enumerate(self.parts):
            batch = part(batch, draw.within(str(number)))
        return batch


def compose(*augmentations: Augmentation) -> Composed:
    """One augmentation after the other, each with random numbers of its own.

    Args:
        augmentations: ``(batch, draw) -> batch``.

    Returns:
        augmentation.

    Raises:
        UsageError: one of them cannot be called.

    Example:
        >>> twice = lambda batch, draw: {"x": 2 * batch["x"]}
        >>> compose(twice, twice)({"x": np.arange(2)}, Draw(0, 0, np.arange(2)))["x"].tolist()
        [0, 4]
    """
    for part in augmentations:
        if not callable(part):
            raise UsageError(f"compose: {part!r} cannot be called; give functions (batch, draw) -> batch")
    return Composed(augmentations)


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which each bit of the result depends on all bits of `x`."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def images(batch: Batch, name: str) -> np.ndarray:
    """The images of a batch, checked.

    Args:
        batch: name -> array.
        name: of the images.

    Returns:
        the array [B, H, W, C], uint8 or floating.

    Raises:
        UserError: there is no such array, or it has another shape or dtype.

    Example:
        >>> images({"image": np.zeros((2, 4, 4, 1))}, "image").shape
        (2, 4, 4, 1)
    """
    x_BHWC = array_of(batch, name)
    if x_BHWC.ndim != 4 or not (x_BHWC.dtype == np.uint8 or np.issubdtype(x_BHWC.dtype, np.floating)):
        raise UserError(
            f"augment: {name} is {x_BHWC.dtype.name} {x_BHWC.shape}; give images [B, H, W, C] of uint8 or floats"
        )
    return x_BHWC


def array_of(batch: Batch, name: str) -> np.ndarray:
    """An array of a batch.

    Raises:
        UserError: there is none of that name.

    Example:
        >>> array_of({"x": np.arange(2)}, "x").tolist()
        [0, 1]
    """
    if name not in batch:
        raise UserError(f"augment: no {name!r} in the batch, only {', '.join(sorted(batch))}; give inputs=NAME")
    return np.asarray(batch[name])
