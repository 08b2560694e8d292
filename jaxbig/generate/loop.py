"""Prompts in, texts out: one compiled program reads the prompts, another goes on token by token.

Every shape is static. Prompts are padded on the right to the next power of two, so that one program a bucket reads them
all; the cache's length alone decides which program goes on, and how many tokens it is to make is a number to it. The
steps are a loop on the device, in which the cache is written in place; a stream looks at it every few steps.

Legend of the shape suffixes: B batch, P tokens of a padded prompt, N tokens of a text, V vocabulary, E ends.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UsageError
from jaxbig.generate.prompts import Prompts, end_ids, padded, row_keys, slots_for
from jaxbig.generate.sampling import GREEDY, Sampling, choose
from jaxbig.generate.stopping import Stops
from jaxbig.lift import lift
from jaxbig.models.cache import Cache, empty_cache, longer
from jaxbig.weight import is_weight

Decoded = Callable[[list[int]], str]


class State(NamedTuple):
    """What the next step needs; donated to it.

    Attributes:
        cache: with all tokens but the last.
        last_B: the last token.
        positions_B: where it stands.
        seen_BV: the tokens that each text has, where a penalty asks for them, or None.
    """

    cache: Cache
    last_B: jax.Array
    positions_B: jax.Array
    seen_BV: Any


class Texts(NamedTuple):
    """What was generated.

    Attributes:
        tokens_BN: N is the cache's length.
        counts_B: how many of them are a row's text.
        done_B: rows that have ended.
        step: the largest count.
    """

    tokens_BN: jax.Array
    counts_B: jax.Array
    done_B: jax.Array
    step: jax.Array


def dtype_of(module: Any, params: Any) -> Any:
    """The dtype that keys and values are computed in: the module's, or that to which its parameters promote.

    Example:
        >>> from jaxbig.models.llama import Llama
        >>> model = Llama(9, 8, layers=1, heads=2, kv_heads=2, head_width=4, hidden=12)
        >>> dtype_of(model, {"kernel": jnp.ones(2, jnp.bfloat16), "codes": jnp.ones(2, jnp.int8)}).name
        'bfloat16'
    """
    if module.dtype is not None:
        return jnp.dtype(module.dtype)
    leaves = (leaf.dtype for leaf in jax.tree.leaves(params, is_leaf=is_weight))
    floating = [dtype for dtype in leaves if jnp.issubdtype(dtype, jnp.floating)]
    return jnp.result_type(*floating) if floating else jnp.dtype(jnp.float32)


def called(module: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
    """``module.apply``, whatever Weights the parameters hold."""
    return lift(module.apply)({"params": params}, *args, **kwargs)


@partial(jax.jit, static_argnames=("module", "slots", "int8"))
def prefill(
    module: Any, params: Any, tokens_BP: jax.Array, lengths_B: jax.Array, keys_B: jax.Array, how: Sampling,
    ends_E: jax.Array, *, slots: int, int8: bool = False,
) -> tuple[State, Texts]:  # fmt: skip
    """Reads the prompts and draws each row's first token."""
    logits_BV, cache = read(module, params, tokens_BP, lengths_B, int8)
    return first(longer(cache, slots), logits_BV, tokens_BP, lengths_B, keys_B, how, ends_E, slots)


def first(
    cache: Any, logits_BV: jax.Array, tokens_BP: jax.Array, lengths_B: jax.Array, keys_B: jax.Array, how: Sampling,
    ends_E: jax.Array, slots: int,
) -> tuple[State, Texts]:  # fmt: skip
    """Draws each row's first token after what it was read from, and begins its text."""
    batch, width = tokens_BP.shape
    seen_BV = None
    if how.repetition_penalty is not None:
        rows = jnp.arange(batch)[:, None]
        real = jnp.arange(width) < lengths_B[:, None]
        seen_BV = jnp.zeros(logits_BV.shape, bool).at[rows, tokens_BP].max(real)
    first_B, seen_BV = _drawn(how, keys_B, jnp.int32(0), logits_BV, seen_BV)
    tokens_BN = jnp.zeros((batch, slots), jnp.int32).at[:, 0].set(first_B)
    done_B = jnp.isin(first_B, ends_E)
    texts = Texts(tokens_BN, jnp.ones(batch, jnp.int32), done_B, jnp.int32(1))
    return State(cache, first_B, lengths_B, seen_BV), texts


def read(module: Any, params: Any, tokens_BP: Any, lengths_B: Any, int8: bool = False) -> tuple[jax.Array, Cache]:
    """The logits after each row's prompt, [B, V], and a cache of P slots, all of them used."""
    batch, width = tokens_BP.shape
    real_BP = jnp.arange(width) < lengths_B[:, None]
    # Padding stands at position 0: one that the model does not have would be NaN, which no mask takes away.
    positions_BP = jnp.where(real_BP, jnp.arange(width), 0)
    cache = empty_cache(module, batch, width, dtype_of(module, params), int8)
    segments_BP = real_BP.astype(jnp.int32)
    return called(module, params, tokens_BP, positions_BP, segments_BP, cache=cache, logits_at=lengths_B - 1)


@partial(jax.jit, static_argnames="module", donate_argnames="state")
def decode(
    module: Any,
    params: Any,
    state: State,
    texts: Texts,
    keys_B: jax.Array,
    how: Sampling,
    ends_E: jax.Array,
    until: Any,
) -> tuple[State, Texts]:
    """Goes on until the texts have so many tokens, or all have ended; step i draws with the keys folded with i."""

    def going(carry: tuple[State, Texts]) -> jax.Array:
        return (carry[1].step < until) & ~carry[1].done_B.all()

    def step(carry: tuple[State, Texts]) -> tuple[State, Texts]:
        state, texts = carry
        places = state.positions_B[:, None], jnp.ones_like(state.last_B)[:, None]
        logits_B1V, cache = called(module, params, state.last_B[:, None], *places, cache=state.cache)
        next_B, seen_BV = _drawn(how, keys_B, texts.step, logits_B1V[:, 0], state.seen_BV)
        next_B = jnp.where(texts.done_B, 0, next_B)
        tokens_BN = jax.lax.dynamic_update_slice_in_dim(texts.tokens_BN, next_B[:, None], texts.step, 1)
        counts_B = texts.counts_B + ~texts.done_B
        texts = Texts(tokens_BN, counts_B, texts.done_B | jnp.isin(next_B, ends_E), texts.step + 1)
        # A row that has ended goes on reading token 0, at one place: there may be none beyond it.
        positions_B = state.positions_B + ~carry[1].done_B
        return State(cache, next_B, positions_B, seen_BV), texts

    return jax.lax.while_loop(going, step, (state, texts))


def _drawn(how: Sampling, keys_B: jax.Array, step: jax.Array, logits_BV: jax.Array, seen_BV: Any) -> tuple[Any, Any]:
    """The next tokens, and which tokens the texts have then."""
    if how.temperature is not None:
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
    next_B = choose(how, keys_B, logits_BV, seen_BV)
    if seen_BV is not None:
        seen_BV = seen_BV.at[jnp.arange(len(next_B)), next_B].set(True)
    return next_B, seen_BV


def stream(
    module: Any, params: Any, prompts: Sequence[Sequence[int]], *, max_tokens: int = 128, how: Sampling = GREEDY,
    key: Any = None, ends: Sequence[int] = (), stop: Sequence[str] = (), decoded: Decoded | None = None,
    length: int | None = None, int8: bool = False, chunk: int = 1,
) -> Iterator[list[list[int]]]:  # fmt: skip
    """New tokens as they come; see `generate` for the arguments.

    Args:
        chunk: how many steps the device makes before anyone looks; another number compiles nothing anew.

    Yields:
        for each row its new tokens, at most `chunk` of them; [] for a row that has ended.

    Example:
        >>> from jaxbig.models.llama import Llama
        >>> model = Llama(9, 8, layers=1, heads=2, kv_heads=2, head_width=4, hidden=12)
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
        >>> [len(row) for row, in stream(model, params, [[1, 2]], max_tokens=5, chunk=2)]
        [1, 2, 2]
    """
    if chunk < 1:
        raise UsageError(f"chunk is {chunk}; it has to be 1 or more")
    given: Prompts = padded(module, prompts, max_tokens)
    stops = Stops(len(prompts), tuple(stop), decoded)
    slots = slots_for(given.tokens_BP.shape[1] + max_tokens, length)
    keys_B, ends_E = row_keys(key, len(prompts), how), end_ids(ends)
    begun = prefill(module, params, *given, keys_B, how, ends_E, slots=slots, int8=int8)
    go_on = partial(decode, module, params, keys_B=keys_B, how=how, ends_E=ends_E)
    yield from followed(begun, go_on, stops, max_tokens, chunk)


def followed(
    begun: tuple[State, Texts], go_on: Callable[..., tuple[State, Texts]], stops: Stops, max_tokens: int, chunk: int
) -> Iterator[list[list[int]]]:
    """Texts that have begun, as they come: ``go_on(state=, texts=, until=)`` is `decode` with all else it needs."""
    state, texts = begun
    del begun  # `decode` is given its arrays
    while True:
        new, stopped = stops.take(np.asarray(texts.tokens_BN), np.asarray(texts.counts_B))
        yield new
        if stopped.any():
            texts = texts._replace(done_B=jnp.asarray(np.asarray(texts.done_B) | stopped))
        step = int(texts.step)
        if step >= max_tokens or bool(texts.done_B.all()):
            return
        state, texts = go_on(state=state, texts=texts, until=min(step + chunk, max_tokens))


def generate(
    module: Any, params: Any, prompts: Sequence[Sequence[int]], *, max_tokens: int = 128, how: Sampling = GREEDY,
    key: Any = None, ends: Sequence[int] = (), stop: Sequence[str] = (), decoded: Decoded | None = None,
    length: int | None = None, int8: bool = False,
) -> list[list[int]]:  # fmt: skip
    """Texts that go on where prompts end.

    Args:
        module: a decoder with a head for the task "causal_lm".
        params: its parameters; leaves may be Weights (4-bit codes, LoRA over them), and are used as they are.
        prompts: token ids, a list a row; of unequal length as they like.
        max_tokens: how many tokens a text may have beyond its prompt.
        how: see `jaxbig.generate.sampling.sampling`; the likeliest token by default.
        key: for sampling: one key, which gives row i ``fold_in(key, i)``, or an array with a key for each row. With the
            same key a row has the same text beside whatever other rows.
        ends: ids that end a text; its last token then is one of them.
        stop: strings that end a text; its last token then is the one with which the string is complete.
        decoded: ids -> text; needed for `stop`.
        length: slots of the cache. All calls with one length (and batch) share one program for their steps, and prompts
            of one bucket one program that reads them; None: the fewest that suffice, by steps, see `slots_for`.
        int8: keep keys and values in 8 bits, see `empty_cache`.

    Returns:
        for each row its new tokens.

    Raises:
        UsageError: an empty prompt, an id that the vocabulary has not, a text longer than the model's positions or the
            cache's slots, sampling without a key, stop strings without `decoded`.

    Example:
        >>> from jaxbig.models.llama import Llama
        >>> model = Llama(9, 8, layers=1, heads=2, kv_heads=2, head_width=4, hidden=12)
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
        >>> texts = generate(model, params, [[1, 2], [3, 4, 5]], max_tokens=4)
        >>> [len(text) for text in texts]
        [4, 4]
        >>> alone, = generate(model, params, [[3, 4, 5]], max_tokens=4)
        >>> alone == texts[1]
        True

    Cost: one pass over the prompts, and one step a token, which reads all parameters and the whole cache. Techniques
    that go around a model (prompts, prefixes) are not known here.
    """
    parts = stream(
        module, params, prompts, max_tokens=max_tokens, how=how, key=key, ends=ends, stop=stop, decoded=decoded,
        length=length, int8=int8, chunk=CHUNK if stop else max(1, max_tokens),
    )  # fmt: skip
    return whole(parts, len(prompts))


def whole(parts: Iterator[list[list[int]]], batch: int) -> list[list[int]]:
    """The texts of a stream, for each row one."""
    texts: list[list[int]] = [[] for _ in range(batch)]
    for new in parts:
        for text, tokens in zip(texts, new, strict=True):
            text += tokens
    return texts


CHUNK = 16  # steps between two looks for stop strings
