"""Speculative decoding: a small model guesses some tokens ahead, the large one reads them all at once.

What comes out is what the large model alone would give: greedy the same text, sampled the same distribution. One text
at a time: it is for the time that a reader waits, and rows that accept unequally many guesses would wait for another.

Legend of the shape suffixes: B = 1, C guesses, P tokens of a padded prompt, N tokens of a text, V vocabulary, E ends.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UsageError
from jaxbig.generate.loop import called, read
from jaxbig.generate.prompts import Prompts, end_ids, padded, row_keys, slots_for
from jaxbig.generate.sampling import GREEDY, Sampling, processed
from jaxbig.models.cache import Cache, longer


class Draft(NamedTuple):
    """The model that guesses. Attributes: module, params: a decoder with the same vocabulary."""

    module: Any
    params: Any


class Round(NamedTuple):
    """Between two rounds.

    Attributes:
        cache, guessing: the large model's and the small one's, with all tokens but the last.
        tokens_N: the text after its prompt.
        count: how many of `tokens_N` there are.
        done: an end is among them.
        rounds: how often the large model was called.
    """

    cache: Cache
    guessing: Cache
    tokens_N: jax.Array
    count: jax.Array
    done: jax.Array
    rounds: jax.Array


class Speculated(NamedTuple):
    """Attributes: texts: new tokens for each prompt; rounds: calls of the large model for each, its prompt included."""

    texts: list[list[int]]
    rounds: list[int]


def speculate(
    module: Any, params: Any, draft: Draft, prompts: Sequence[Sequence[int]], *, guesses: int = 4,
    max_tokens: int = 128, how: Sampling = GREEDY, key: Any = None, ends: Sequence[int] = (),
    length: int | None = None, int8: bool = False,
) -> Speculated:  # fmt: skip
    """Texts of a large model in fewer of its steps.

    Guess x, drawn from the small model's q, is accepted with probability ``min(1, p(x) / q(x))``; the first that is not
    is drawn anew from ``max(0, p - q)``, normalised, and after accepted guesses alone one more comes from p.

    Args:
        module, params, prompts, max_tokens, ends, length, int8: see `jaxbig.generate.loop.generate`.
        draft: the small model.
        guesses: C, tokens that it guesses in each round.
        how: p and q are both what it makes of the models' logits; no repetition penalty.
        key: see `generate`; the same key does not draw the tokens that `generate` draws.

    Returns:
        the texts, and how often the large model was called.

    Raises:
        UsageError: as `generate`, and other vocabularies, no guesses, or a repetition penalty.

    Example:
        >>> from jaxbig.models.llama import Llama
        >>> model = Llama(9, 8, layers=1, heads=2, kv_heads=2, head_width=4, hidden=12)
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
        >>> found = speculate(model, params, Draft(model, params), [[1, 2]], guesses=3, max_tokens=9)
        >>> len(found.texts[0]), found.rounds
        (9, [3])

    Cost: a round is C + 1 steps of the small model and one pass of the large one over C + 1 tokens; it gives from 1 to
    C + 1 tokens. Prompts are taken one after the other.

    Reference:
        Leviathan et al. (2022), arXiv:2211.17192; Chen et al. (2023), arXiv:2302.01318.
    """
    if guesses < 1:
        raise UsageError(f"guesses is {guesses}; it has to be 1 or more")
    if how.repetition_penalty is not None:
        raise UsageError("speculative decoding knows no repetition_penalty; use generate")
    if draft.module.vocabulary != module.vocabulary:
        raise UsageError(
            f"the draft has {draft.module.vocabulary} tokens, the model {module.vocabulary}; they need one vocabulary"
        )
    keys_B = row_keys(key, len(prompts), how)
    # The last round may write guesses beyond max_tokens.
    given = [padded(module, [prompt], max_tokens + guesses) for prompt in prompts]
    for prompt in prompts:
        padded(draft.module, [prompt], max_tokens + guesses)
    needed = max(each.tokens_BP.shape[1] for each in given) + max_tokens + guesses + 1
    sizes = {"slots": slots_for(needed, length), "most": max_tokens, "guesses": guesses, "int8": int8}
    found = Speculated([], [])
    for row, each in enumerate(given):
        last = _text(module, draft.module, (params, draft.params), each, keys_B[row], how, end_ids(ends), **sizes)
        tokens = np.asarray(last.tokens_N)[: min(int(last.count), max_tokens)].tolist()
        end = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
        found.texts.append(tokens[:end])
        found.rounds.append(int(last.rounds))
    return found


@partial(jax.jit, static_argnames=("module", "small", "slots", "most", "guesses", "int8"))
def _text(
    module: Any, small: Any, params: tuple[Any, Any], given: Prompts, key: jax.Array, how: Sampling, ends_E: jax.Array,
    *, slots: int, most: int, guesses: int, int8: bool,
) -> Round:  # fmt: skip
    """One text; it may be longer than asked for by some guesses."""
    logits_BV, cache = read(module, params[0], *given, int8)
    _, guessing = read(small, params[1], *given, int8)
    first = _drawn(how, jax.random.fold_in(key, 0), logits_BV[0])
    tokens_N = jnp.zeros(most + guesses + 1, jnp.int32).at[0].set(first)
    start = Round(
        longer(cache, slots), longer(guessing, slots), tokens_N, jnp.int32(1), jnp.isin(first, ends_E), jnp.int32(1)
    )
    width = given.tokens_BP.shape[1]

    def going(state: Round) -> jax.Array:
        return (state.count < most) & ~state.done

    def round_(state: Round) -> Round:
        its = jax.random.split(jax.random.fold_in(key, state.rounds), guesses + 3)
        last = state.tokens_N[state.count - 1]
        position = given.lengths_B[0] + state.count - 1
        guessed_C, q_CV, guessing = _guessed(small, params[1], state.guessing, how, its, last, position, guesses)
        tokens_1T = jnp.concatenate([last[None], guessed_C])[None]
        places = (position + jnp.arange(guesses + 1))[None], jnp.ones_like(tokens_1T)
        logits_1TV, cache = called(module, params[0], tokens_1T, *places, cache=state.cache)
        new_T, accepted = _judged(how, its[-2:], logits_1TV[0], guessed_C, q_CV)
        tokens_N = jax.lax.dynamic_update_slice_in_dim(state.tokens_N, new_T, state.count, 0)
        count = state.count + accepted + 1
        ended = (jnp.isin(new_T, ends_E) & (jnp.arange(guesses + 1) <= accepted)).any()
        # What was read of guesses that are not accepted is forgotten: the next token is written over it.
        index = width + count - 1
        return Round(
            cache._replace(index=index), guessing._replace(index=index), tokens_N, count, ended, state.rounds + 1
        )

    return jax.lax.while_loop(going, round_, start)


def _guessed(
    small: Any, params: Any, cache: Cache, how: Sampling, keys: jax.Array, last: jax.Array, position: jax.Array,
    guesses: int,
) -> tuple[jax.Array, jax.Array, Cache]:  # fmt: skip
    """C guesses, the logits that they were drawn from, and the cache with all of them read."""

    def step(carry: tuple[Any, Any], number: jax.Array) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        token, cache = carry
        places = (position + number)[None, None], jnp.ones((1, 1), jnp.int32)
        logits_11V, cache = called(small, params, token[None, None], *places, cache=cache)
        logits_V = processed(how, logits_11V[0])[0]
        return (_chosen(how, keys[number], logits_V), cache), (logits_V, token)

    # One step more than guesses: the last guess has to be read too, should all be accepted.
    (_, cache), (logits, tokens) = jax.lax.scan(step, (last, cache), jnp.arange(guesses + 1, dtype=jnp.int32))
    return tokens[1:], logits[:-1], cache


def _judged(
    how: Sampling, keys: jax.Array, logits_TV: jax.Array, guessed_C: jax.Array, q_CV: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The guesses with what comes after the last accepted one in its place, and how many were accepted."""
    guesses = len(guessed_C)
    logits_TV = processed(how, logits_TV)
    if how.temperature is None:
        right_T = jnp.argmax(logits_TV, axis=-1).astype(jnp.int32)
        return right_T, jnp.cumprod(right_T[:-1] == guessed_C).sum(dtype=jnp.int32)
    p_TV, q_CV = jax.nn.softmax(logits_TV), jax.nn.softmax(q_CV)
    p_C, q_C = (jnp.take_along_axis(each, guessed_C[:, None], axis=1)[:, 0] for each in (p_TV[:-1], q_CV))
    kept_C = jax.random.uniform(keys[0], (guesses,), p_C.dtype) * q_C < p_C
    accepted = jnp.cumprod(kept_C).sum(dtype=jnp.int32)
    # Beyond the last guess nothing was guessed, and what is left of p is p.
    left_V = jnp.maximum(p_TV[accepted] - jnp.append(q_CV, jnp.zeros_like(q_CV[:1]), axis=0)[accepted], 0)
    # p and q that are equal but for rounding never come here but by rounding; p itself is right then.
    left_V = jnp.where(left_V.sum() > 0, left_V, p_TV[accepted])
    anew = jax.random.categorical(keys[1], jnp.log(left_V)).astype(jnp.int32)
    return jnp.append(guessed_C, jnp.int32(0)).at[accepted].set(anew), accepted


def _drawn(how: Sampling, key: jax.Array, logits_V: jax.Array) -> jax.Array:
    return _chosen(how, key, processed(how, logits_V[None])[0])


def _chosen(how: Sampling, key: jax.Array, logits_V: jax.Array) -> jax.Array:
    """A token of processed logits."""
    if how.temperature is None:
        return jnp.argmax(logits_V).astype(jnp.int32)
    return jax.random.categorical(key, logits_V).astype(jnp.int32)
