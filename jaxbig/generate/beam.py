"""Beam search: the likeliest whole texts that a few candidates lead to.

Legend of the shape suffixes: B prompts, K beams, M candidates, P tokens of a padded prompt, N tokens of a text, V
vocabulary, E ends.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from jaxbig.errors import UsageError
from jaxbig.generate.loop import called, read
from jaxbig.generate.prompts import end_ids, padded, slots_for
from jaxbig.models.cache import Cache, Codes, longer

NEVER = -1e9  # the score of what is no candidate


class Rule(NamedTuple):
    """How texts are scored, and when the search ends.

    Attributes:
        beams: K.
        length_penalty: a text of n tokens has the score ``log p / n^penalty``.
        early: True: once K texts have ended; False: once no beam, as long as it is now, scores better than the worst of
            them; "never": once no beam could.
        ends: number of ids that end a text.
    """

    beams: int
    length_penalty: float
    early: bool | str
    ends: int


class Beams(NamedTuple):
    """Beams that go on, and the best texts that have ended.

    Attributes:
        cache: B K rows.
        tokens_BKN, scores_BK: of beams that go on; log p.
        ended_BKN, marks_BK, lengths_BK, there_BK: of ended texts: tokens, scores, lengths, and whether there is one.
        open_B: a better text may yet come.
        step: tokens of each beam.
    """

    cache: Cache
    tokens_BKN: jax.Array
    scores_BK: jax.Array
    ended_BKN: jax.Array
    marks_BK: jax.Array
    lengths_BK: jax.Array
    there_BK: jax.Array
    open_B: jax.Array
    step: jax.Array


def beam_search(
    module: Any, params: Any, prompts: Sequence[Sequence[int]], *, beams: int = 4, max_tokens: int = 128,
    length_penalty: float = 1.0, early_stopping: bool | str = False, ends: Sequence[int] = (),
    length: int | None = None, int8: bool = False,
) -> list[list[int]]:  # fmt: skip
    """The best text that a beam search finds for each prompt: ``max log p(text) / len(text)^length_penalty``.

    Args:
        module, params, prompts, max_tokens, ends, length, int8: see `jaxbig.generate.loop.generate`.
        beams: K; 1 is greedy.
        length_penalty: more than 0 favours long texts, less short ones.
        early_stopping: see `Rule`.

    Returns:
        for each prompt its new tokens, the id that ends it included.

    Raises:
        UsageError: as `generate`, and no beams or an unknown `early_stopping`.

    Example:
        >>> from jaxbig.models.llama import Llama
        >>> model = Llama(9, 8, layers=1, heads=2, kv_heads=2, head_width=4, hidden=12)
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
        >>> text, = beam_search(model, params, [[1, 2]], beams=3, max_tokens=4)
        >>> len(text)
        4

    Cost: a step is that of B K rows, and moves the cache's rows, which copies it; in memory two such caches.

    Reference:
        Wu et al. (2016), "Google's neural machine translation system", arXiv:1609.08144, with the penalty that
        transformers divides by. Deviations from transformers: scores are added in the logits' dtype, float32 at least.
        A prompt's search ends by itself, where theirs goes on for all until the last has ended; texts are the same, as
        theirs admits nothing to a search that has ended.
    """
    if beams < 1 or 2 * beams > module.vocabulary:
        raise UsageError(f"beams is {beams}; it has to be from 1 to half the vocabulary's {module.vocabulary} tokens")
    if early_stopping not in (True, False, "never"):
        raise UsageError(f"early_stopping is {early_stopping!r}; it is True, False or 'never'")
    given = padded(module, prompts, max_tokens)
    slots = slots_for(given.tokens_BP.shape[1] + max_tokens, length)
    rule = Rule(beams, float(length_penalty), early_stopping, len(ends))
    options = {"slots": slots, "most": max_tokens, "int8": int8}
    found = _search(module, rule, params, given.tokens_BP, given.lengths_B, end_ids(ends), **options)
    tokens_BN, lengths_B = (jax.device_get(each) for each in found)
    return [row[:count].tolist() for row, count in zip(tokens_BN, lengths_B, strict=True)]


@partial(jax.jit, static_argnames=("module", "rule", "slots", "most", "int8"))
def _search(
    module: Any, rule: Rule, params: Any, tokens_BP: jax.Array, lengths_B: jax.Array, ends_E: jax.Array, *, slots: int,
    most: int, int8: bool,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The best text of each prompt, and its length."""
    logits_BV, cache = read(module, params, tokens_BP, lengths_B, int8)
    state = _first(rule, longer(cache, slots), logits_BV, ends_E, most)

    def going(state: Beams) -> jax.Array:
        return (state.step < most) & state.open_B.any()

    def step(state: Beams) -> Beams:
        last_B1 = rearrange(jax.lax.dynamic_index_in_dim(state.tokens_BKN, state.step - 1, 2, False), "B K -> (B K) 1")
        positions_B1 = repeat(lengths_B + state.step - 1, "B -> (B K) 1", K=rule.beams)
        logits, cache = called(module, params, last_B1, positions_B1, jnp.ones_like(last_B1), cache=state.cache)
        log_p_BKV = jax.nn.log_softmax(rearrange(logits, "(B K) 1 V -> B K V", K=rule.beams))
        return _advanced(rule, state._replace(cache=cache), log_p_BKV, ends_E, most)

    state = jax.lax.while_loop(going, step, state)
    # The best text stands first; there are K, as at the last step the beams themselves have ended.
    return state.ended_BKN[:, 0], state.lengths_BK[:, 0]


def _first(rule: Rule, cache: Cache, logits_BV: jax.Array, ends_E: jax.Array, most: int) -> Beams:
    """After the prompt: one beam, the others are no candidates yet."""
    batch, beams = logits_BV.shape[0], rule.beams
    tokens_BKN = jnp.zeros((batch, beams, most), jnp.int32)
    scores_BK = jnp.full((batch, beams), NEVER, logits_BV.dtype).at[:, 0].set(0)
    none_BK = jnp.zeros((batch, beams), bool)
    state = Beams(
        _rows(cache, jnp.arange(batch).repeat(beams)), tokens_BKN, scores_BK, tokens_BKN,
        jnp.full_like(scores_BK, NEVER), jnp.zeros((batch, beams), jnp.int32), none_BK, jnp.ones(batch, bool),
        jnp.int32(0),
    )  # fmt: skip
    log_p_BKV = repeat(jax.nn.log_softmax(logits_BV), "B V -> B K V", K=beams)
    return _advanced(rule, state, log_p_BKV, ends_E, most)


def _advanced(rule: Rule, state: Beams, log_p_BKV: jax.Array, ends_E: jax.Array, most: int) -> Beams:
    """One token more: the best M of all continuations, of which the best K that have not ended go on."""
    beams, vocabulary = rule.beams, log_p_BKV.shape[-1]
    totals = rearrange(log_p_BKV + state.scores_BK[..., None], "B K V -> B (K V)")
    # So many that K are left even where every beam's likeliest tokens are its ends.
    scores_BM, flat_BM = jax.lax.top_k(totals, min(max(2, 1 + rule.ends) * beams, totals.shape[-1]))
    from_BM, token_BM = flat_BM // vocabulary, (flat_BM % vocabulary).astype(jnp.int32)
    tokens_BMN = _taken(state.tokens_BKN, from_BM)
    tokens_BMN = jax.lax.dynamic_update_slice_in_dim(tokens_BMN, token_BM[..., None], state.step, 2)
    done_BM = jnp.isin(token_BM, ends_E) | (state.step + 1 >= most)
    state = _with_ended(rule, state, tokens_BMN, scores_BM, done_BM)
    on_BK = jax.lax.top_k(scores_BM + jnp.where(done_BM, NEVER, 0), beams)[1]
    moved = rearrange(_taken(from_BM, on_BK) + beams * jnp.arange(len(on_BK))[:, None], "B K -> (B K)")
    step = state.step + 1
    scores_BK = _taken(scores_BM + jnp.where(done_BM, NEVER, 0), on_BK)
    state = state._replace(
        cache=_rows(state.cache, moved), tokens_BKN=_taken(tokens_BMN, on_BK), scores_BK=scores_BK, step=step
    )
    return state._replace(open_B=state.open_B & _may_improve(rule, state, most))


def _with_ended(rule: Rule, state: Beams, tokens_BMN: jax.Array, scores_BM: jax.Array, done_BM: jax.Array) -> Beams:
    """Texts among the best K candidates that have ended, beside those that had: the best K of both."""
    length = (state.step + 1).astype(scores_BM.dtype)
    admitted = done_BM & (jnp.arange(done_BM.shape[1]) < rule.beams) & state.open_B[:, None]
    if rule.early is True:
        admitted &= ~state.there_BK.all(axis=1, keepdims=True)
    marks = jnp.concatenate([state.marks_BK, jnp.where(admitted, scores_BM / length**rule.length_penalty, NEVER)], 1)
    marks_BK, kept_BK = jax.lax.top_k(marks, rule.beams)
    lengths = jnp.concatenate([state.lengths_BK, jnp.broadcast_to(state.step + 1, scores_BM.shape)], axis=1)
    there = jnp.concatenate([state.there_BK, admitted], axis=1)
    return state._replace(
        ended_BKN=_taken(jnp.concatenate([state.ended_BKN, tokens_BMN], axis=1), kept_BK),
        marks_BK=marks_BK,
        lengths_BK=_taken(lengths, kept_BK),
        there_BK=_taken(there, kept_BK),
    )


def _may_improve(rule: Rule, state: Beams, most: int) -> jax.Array:
    """Whether a search goes on: bool [B]."""
    full_B = state.there_BK.all(axis=1)
    if rule.early is True:
        return ~full_B
    longest = most if rule.early == "never" and rule.length_penalty > 0 else state.step
    length = jnp.asarray(longest, state.scores_BK.dtype)
    best_B = state.scores_BK[:, 0] / length**rule.length_penalty
    # Where fewer than K texts have ended, their worst is none at all, and any beam is better.
    return best_B > jnp.where(state.there_BK, state.marks_BK, NEVER).min(axis=1)


def _taken(each: jax.Array, which: jax.Array) -> jax.Array:
    """``each[b, which[b, k]]``."""
    return jax.vmap(lambda row, index: row[index])(each, which)


def _rows(cache: Cache, rows: jax.Array) -> Cache:
    """The cache with these of its rows; what lies in stacks has its rows second."""
    stacked = not isinstance(cache.keys, tuple) or isinstance(cache.keys, Codes)

    def all_of(each: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[:, rows] if stacked else leaf[rows], each)

    return Cache(
        all_of(cache.keys), all_of(cache.values), cache.positions[rows], cache.segments[rows], cache.index
    )  # fmt: skip
