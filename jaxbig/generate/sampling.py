"""Which token comes next: logits -> processed logits -> one token a row.

Legend of the shape suffixes: B batch, V vocabulary.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UsageError


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_p", "min_p", "repetition_penalty"],
    meta_fields=["top_k"],
)
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn. It is a pytree: other numbers, but for `top_k`, compile nothing anew.

    Attributes:
        temperature: logits are divided by it; None: the likeliest token is taken, and of all else only
            `repetition_penalty` counts.
        top_k: only the k likeliest tokens (and those equal to the k-th).
        top_p: only the likeliest tokens whose probabilities sum up to p, the one that reaches p included.
        min_p: only tokens at least this many times as likely as the likeliest.
        repetition_penalty: the logit of a token that the text has already, prompt included, is divided by it where it
            is positive and multiplied with it where it is negative.

    They are applied in transformers' order: penalty, temperature, top_k, top_p, min_p; each sees what those before it
    left.

    Example:
        >>> sampling(temperature=0.7, top_p=0.9).top_p, sampling(temperature=0).temperature
        (0.9, None)

    Reference:
        Holtzman et al. (2019), arXiv:1904.09751 (top_p); Nguyen et al. (2024), arXiv:2407.01082 (min_p); Keskar et al.
        (2019), arXiv:1909.05858 (the penalty). Deviations from transformers: tokens equal to the last that top_p keeps
        are kept too, theirs go or stay as the sort happens to put them; padding is no part of the text.
    """

    temperature: Any = None
    top_k: int | None = None
    top_p: Any = None
    min_p: Any = None
    repetition_penalty: Any = None


GREEDY = Sampling()


def sampling(
    temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
    repetition_penalty: float | None = None,
) -> Sampling:  # fmt: skip
    """A checked `Sampling`; numbers that change nothing (1.0, top_k=0) become None.

    Args:
        temperature: 0 for the likeliest token.
        top_k, top_p, min_p, repetition_penalty: see `Sampling`.

    Returns:
        the description.

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> sampling(top_p=1.5)
        Traceback (most recent call last):
            ...
        jaxbig.errors.UsageError: top_p is 1.5; it has to be more than 0 and at most 1
    """
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"temperature is {temperature}; it has to be 0 or more")
    if top_k is not None and (top_k < 0 or int(top_k) != top_k):
        raise UsageError(f"top_k is {top_k}; it has to be a whole number, 0 for all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"top_p is {top_p}; it has to be more than 0 and at most 1")
    if min_p is not None and not 0 <= min_p <= 1:
        raise UsageError(f"min_p is {min_p}; it has to be between 0 and 1")
    if repetition_penalty is not None and not 0 < repetition_penalty < float("inf"):
        raise UsageError(f"repetition_penalty is {repetition_penalty}; it has to be more than 0")
    penalty = None if repetition_penalty in (None, 1) else float(repetition_penalty)
    if temperature == 0:
        return Sampling(repetition_penalty=penalty)
    return Sampling(
        float(temperature),
        int(top_k) if top_k else None,
        None if top_p in (None, 1) else float(top_p),
        float(min_p) if min_p else None,
        penalty,
    )


def processed(how: Sampling, logits_BV: jax.Array, seen_BV: Any = None) -> jax.Array:
    """The logits that a token is drawn from; -inf for tokens that cannot come.

    Args:
        how: with a temperature, or only the penalty is applied.
        logits_BV: the model's.
        seen_BV: bool, the tokens that each text has; needed for the penalty alone.

    Returns:
        float [B, V].

    Example:
        >>> processed(sampling(top_k=1), jnp.array([[1.0, 3.0, 2.0]])).tolist()
        [[-inf, 3.0, -inf]]
    """
    if how.repetition_penalty is not None:
        less_BV = jnp.where(logits_BV < 0, logits_BV * how.repetition_penalty, logits_BV / how.repetition_penalty)
        logits_BV = jnp.where(seen_BV, less_BV, logits_BV)
    if how.temperature is None:
        return logits_BV
    logits_BV = logits_BV / how.temperature
    if how.top_k is not None:
        least_B1 = jax.lax.top_k(logits_BV, min(how.top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if how.top_p is not None:
        rising_BV = jnp.sort(logits_BV, axis=-1)
        below_B = (jnp.cumsum(jax.nn.softmax(rising_BV, axis=-1), axis=-1) <= 1 - how.top_p).sum(axis=-1)
        last_B1 = jnp.minimum(below_B, logits_BV.shape[-1] - 1)[:, None]
        least_B1 = jnp.take_along_axis(rising_BV, last_B1, axis=-1)
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if how.min_p is not None:
        p_BV = jax.nn.softmax(logits_BV, axis=-1)
        logits_BV = jnp.where(p_BV < how.min_p * p_BV.max(axis=-1, keepdims=True), -jnp.inf, logits_BV)
    return logits_BV


def choose(how: Sampling, keys_B: jax.Array, logits_BV: jax.Array, seen_BV: Any = None) -> jax.Array:
    """One token a row.

    Args:
        how: see `Sampling`.
        keys_B: a key for each row; a row's token depends on no other row.
        logits_BV, seen_BV: see `processed`.

    Returns:
        int32 [B].

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 1)
        >>> choose(GREEDY, keys, jnp.array([[1.0, 3.0, 2.0]])).tolist()
        [1]
    """
    logits_BV = processed(how, logits_BV, seen_BV)
    if how.temperature is None:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
