"""Texts from an encoder-decoder: the encoder reads each prompt once, the decoder writes from its first token on.

Keys and values of the attention to the encoder's states are computed once, before the first token; each step reads them
beside the decoder's own cache. The steps are those of `jaxbig.generate.loop`.

Legend of the shape suffixes: B batch, P tokens of a padded prompt, I tokens that a text begins with, E ends.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UsageError
from jaxbig.generate.loop import CHUNK, Decoded, State, Texts, called, decode, dtype_of, first, followed, whole
from jaxbig.generate.prompts import Prompts, check, end_ids, padded, row_keys, slots_for
from jaxbig.generate.sampling import GREEDY, Sampling
from jaxbig.generate.stopping import Stops
from jaxbig.lift import lift
from jaxbig.models.seq2seq import DecoderOf, Remembered


def remember(module: Any, params: Any, tokens_BP: Any, lengths_B: Any, *, slots: int, int8: bool = False) -> Remembered:
    """Runs the encoder over padded prompts, whatever Weights the parameters hold.

    Args:
        module: an encoder-decoder, see `DecoderOf`.
        params: its parameters.
        tokens_BP, lengths_B: see `Prompts`; or spectrograms and None.
        slots, int8: of the decoder's cache, which is empty.

    Returns:
        what the decoder needs for its first token.
    """
    segments_BP = None
    if lengths_B is not None:
        segments_BP = (jnp.arange(tokens_BP.shape[1]) < lengths_B[:, None]).astype(jnp.int32)
    begin = partial(DecoderOf(module).begin, length=slots, dtype=dtype_of(module, params), int8=int8)
    return lift(begin)({"params": params}, tokens_BP, segments_BP)


@partial(jax.jit, static_argnames=("module", "slots", "int8"))
def begin(
    module: Any, params: Any, tokens_BP: jax.Array, lengths_B: Any, start_I: jax.Array, keys_B: jax.Array,
    how: Sampling, ends_E: jax.Array, *, slots: int, int8: bool = False,
) -> tuple[State, Texts]:  # fmt: skip
    """Reads the prompts and draws each row's first token after those that all begin with."""
    held = remember(module, params, tokens_BP, lengths_B, slots=slots, int8=int8)
    start_BI = jnp.broadcast_to(start_I, (len(tokens_BP), len(start_I)))
    counts_B = jnp.full(len(tokens_BP), len(start_I), jnp.int32)
    logits_BV, held = called(DecoderOf(module), params, start_BI, cache=held, logits_at=counts_B - 1)
    return first(held, logits_BV, start_BI, counts_B, keys_B, how, ends_E, slots)


def stream(
    module: Any, params: Any, prompts: Any, *, start: Sequence[int] | None = None,
    max_tokens: int = 128, how: Sampling = GREEDY, key: Any = None, ends: Sequence[int] = (), stop: Sequence[str] = (),
    decoded: Decoded | None = None, length: int | None = None, int8: bool = False, chunk: int = 1,
) -> Iterator[list[list[int]]]:  # fmt: skip
    """New tokens as they come; see `generate` for the arguments.

    Args:
        chunk: how many steps the device makes before anyone looks; another number compiles nothing anew.

    Yields:
        for each row its new tokens, at most `chunk` of them; [] for a row that has ended.
    """
    if chunk < 1:
        raise UsageError(f"chunk is {chunk}; it has to be 1 or more")
    given = _given(module, prompts, max_tokens)
    start_I = np.asarray([module.start] if start is None else list(start))
    if not len(start_I) or not np.issubdtype(start_I.dtype, np.integer):
        raise UsageError(f"start is {start!r}; give the ids that every text begins with, such as [0]")
    if start_I.min() < 0 or start_I.max() >= module.vocabulary:
        raise UsageError(f"start is {start_I.tolist()}; the vocabulary has 0 to {module.vocabulary - 1}")
    if given.lengths_B is None and len(start_I) + max_tokens > module.length:
        told = f"start has {len(start_I)} ids and max_tokens is {max_tokens}"
        raise UsageError(f"{told}, more than the model's {module.length} positions")
    stops = Stops(len(prompts), tuple(stop), decoded)
    slots = slots_for(len(start_I) + max_tokens, length)
    keys_B, ends_E = row_keys(key, len(prompts), how), end_ids(ends)
    begun = begin(
        module, params, *given, start_I.astype(np.int32), keys_B, how, ends_E, slots=slots, int8=int8
    )  # fmt: skip
    go_on = partial(decode, DecoderOf(module), params, keys_B=keys_B, how=how, ends_E=ends_E)
    yield from followed(begun, go_on, stops, max_tokens, chunk)


def _given(module: Any, prompts: Any, max_tokens: int) -> Prompts:
    """Token ids, padded; or spectrograms as they are, which have no lengths."""
    sounds, mels = getattr(prompts, "ndim", 0) == 3, getattr(module, "mels", None)
    if sounds != (mels is not None):
        wanted = "token ids, a list a row" if mels is None else f"spectrograms, an array [batch, frames, {mels}]"
        raise UsageError(f"the prompts are none that a {type(module).__name__} reads; give {wanted}")
    if not sounds:
        return padded(module, prompts, max_tokens, "seq2seq_lm")
    check(module, prompts, max_tokens, "seq2seq_lm")
    return Prompts(prompts, None)


def generate(
    module: Any, params: Any, prompts: Any, *, start: Sequence[int] | None = None,
    max_tokens: int = 128, how: Sampling = GREEDY, key: Any = None, ends: Sequence[int] = (), stop: Sequence[str] = (),
    decoded: Decoded | None = None, length: int | None = None, int8: bool = False,
) -> list[list[int]]:  # fmt: skip
    """The texts that an encoder-decoder answers to prompts.

    Args:
        module: an encoder-decoder for the task "seq2seq_lm", such as `jaxbig.models.T5` or
            `jaxbig.models.Whisper`.
        params: its parameters; leaves may be Weights, and are used as they are.
        prompts: token ids for the encoder, a list a row; of unequal length as they like. T5's end with its end id. For
            a Whisper spectrograms, [B, N, F], see `jaxbig.models.logmel.whisper_log_mel`.
        start: ids that every text begins with, which are not returned; None: the module's ``start``, which is the
            ``decoder_start_token_id`` of its ``config.json``, or else its padding id.
        max_tokens: how many tokens a text may have beyond `start`.
        how, key, ends, stop, decoded, int8: see `jaxbig.generate.loop.generate`. A penalty on repetitions counts the
            decoder's tokens, `start` included, and not the prompt's.
        length: slots of the decoder's cache, see `jaxbig.generate.loop.generate`.

    Returns:
        for each row its new tokens, the id that ends it included.

    Raises:
        UsageError: as `jaxbig.generate.loop.generate`, or a `start` that is none, or prompts of another kind than
            the model reads.

    Example:
        >>> from jaxbig.models.t5 import T5
        >>> model = T5(vocabulary=11, width=8, layers=1, heads=2, head_width=3, hidden=12)
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1), int), jnp.zeros((1, 1), int))["params"]
        >>> texts = generate(model, params, [[5, 6, 1], [7, 1]], max_tokens=4)
        >>> alone, = generate(model, params, [[7, 1]], max_tokens=4)
        >>> [len(text) for text in texts], alone == texts[1]
        ([4, 4], True)

    Cost: one pass of the encoder; a step reads all of the decoder's parameters, its cache and, of each layer, 2 H K
    numbers a token of the padded prompts.

    Deviations from transformers: nothing is said of lengths (``min_length``), and a text that has ended is not padded.
    """
    parts = stream(
        module, params, prompts, start=start, max_tokens=max_tokens, how=how, key=key, ends=ends, stop=stop,
        decoded=decoded, length=length, int8=int8, chunk=CHUNK if stop else max(1, max_tokens),
    )  # fmt: skip
    return whole(parts, len(prompts))
