"""Prompts of unequal length as arrays of few shapes, with their keys.

Legend of the shape suffixes: B batch, P tokens of a padded prompt.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UsageError
from jaxbig.generate.sampling import Sampling

SMALLEST = 16


class Prompts(NamedTuple):
    """Padded prompts.

    Attributes:
        tokens_BP: int32, 0 beyond a prompt's end; or spectrograms [B, N, F].
        lengths_B: int32; of spectrograms None.
    """

    tokens_BP: Any
    lengths_B: Any


def bucket(count: int) -> int:
    """The next power of two, 16 at least.

    Example:
        >>> bucket(3), bucket(32), bucket(33)
        (16, 32, 64)
    """
    return max(SMALLEST, 1 << (count - 1).bit_length())


def slots_for(count: int, length: int | None = None) -> int:
    """How many slots a cache has.

    Args:
        count: that it needs.
        length: that it is to have; None: the next power of two up to 128, beyond that the next multiple of 128.

    Raises:
        UsageError: length is less than count.

    Example:
        >>> slots_for(20), slots_for(140), slots_for(140, 512)
        (32, 256, 512)
    """
    if length is None:
        return bucket(count) if count <= 128 else -(-count // 128) * 128
    if length < count:
        raise UsageError(f"length is {length}; the padded prompts and max_tokens need {count} slots")
    return length


def check(module: Any, prompts: Any, max_tokens: int, task: str) -> None:
    """Raises where nothing can be written, whatever the prompts are.

    Raises:
        UsageError: no prompts, no tokens to come, or a model for another task.
    """
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}; it has to be 1 or more")
    if len(prompts) == 0:
        raise UsageError("no prompts; give a list of token ids for each text")
    if module.task != task:
        raise UsageError(f"the model's task is {module.task!r}; texts need one with {task!r}")


def padded(module: Any, prompts: Sequence[Sequence[int]], max_tokens: int, task: str = "causal_lm") -> Prompts:
    """Prompts, checked, in the smallest bucket that holds them all.

    Args:
        module: the decoder, whose vocabulary and positions (``length``, where it has one) are asked for.
        prompts: token ids, a list a row.
        max_tokens: that are to come.
        task: that the module has to have.

    Returns:
        the arrays.

    Raises:
        UsageError: see `generate`.

    Example:
        >>> from jaxbig.models.llama import Llama
        >>> model = Llama(9, 8, layers=1, heads=2, kv_heads=2, head_width=4, hidden=12)
        >>> padded(model, [[1, 2], [3]], max_tokens=4).lengths_B.tolist()
        [2, 1]
    """
    check(module, prompts, max_tokens, task)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if not lengths.all():
        raise UsageError(f"prompt {int(lengths.argmin())} is empty; it needs a token to begin with, such as the BOS id")
    tokens_BP = np.zeros((len(prompts), bucket(int(lengths.max()))), np.int32)
    for row, prompt in enumerate(prompts):
        ids = np.asarray(prompt)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise UsageError(f"prompt {row} is no list of token ids; encode texts first")
        if ids.min() < 0 or ids.max() >= module.vocabulary:
            wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise UsageError(f"prompt {row} has the id {wrong}; the vocabulary has 0 to {module.vocabulary - 1}")
        tokens_BP[row, : len(ids)] = ids
    most = getattr(module, "length", None)
    if most is not None and lengths.max() + max_tokens > most:
        raise UsageError(
            f"a prompt of {lengths.max()} tokens and max_tokens={max_tokens} are more than the model's {most} positions"
        )
    return Prompts(tokens_BP, lengths)


def end_ids(ends: Sequence[int]) -> np.ndarray:
    """Ids that end a text, int32 of few shapes; -1, which is no token, where there are fewer than 8.

    Example:
        >>> end_ids([2, 3]).tolist()
        [2, 3, -1, -1, -1, -1, -1, -1]
    """
    found = np.full(max(8, bucket(len(ends)) if len(ends) > 8 else 8), -1, np.int32)
    found[: len(ends)] = ends
    return found


def row_keys(key: Any, batch: int, how: Sampling) -> jax.Array:
    """A key for each row.

    Args:
        key: one key, [B] keys, or None.
        batch: B.
        how: what they are for.

    Returns:
        keys [B]; row i has ``fold_in(key, i)`` of a single one.

    Raises:
        UsageError: sampling without a key, or another number of keys than rows.

    Example:
        >>> from jaxbig.generate.sampling import GREEDY
        >>> row_keys(jax.random.key(0), 3, GREEDY).shape
        (3,)
    """
    if key is None:
        if how.temperature is not None:
            raise UsageError(
                "sampling needs a key: give key=jax.random.key(0), or temperature=0 for the likeliest token"
            )
        key = jax.random.key(0)
    key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise UsageError(f"keys of shape {key.shape} for {batch} prompts; give one key, or one for each")
    return key
