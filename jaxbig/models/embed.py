"""Vectors of texts, from the last hidden states of an encoder, and vectors of length 1.

Legend of the shape suffixes: B batch, T tokens, D width, S texts in a row.
"""

import jax
import jax.numpy as jnp

from jaxbig.errors import UserError


def unit(x: jax.Array) -> jax.Array:
    """``x / max(|x|, 1e-12)`` along the last axis, float32 at least; the gradient of a zero vector is finite.

    Example:
        >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(3).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The maximum is taken below the root, whose gradient at zero would be infinite.
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))


def sentence_embeddings(
    states_BTD: jax.Array, segments_BT: jax.Array | None = None, texts: int | None = None, normalise: bool = True
) -> jax.Array:
    """The mean of a text's last hidden states, made a unit vector.

    ``m = sum_{t in text} x_t / max(n, 1)``, where the text has n tokens, and ``e = m / max(|m|, 1e-12)``.

    Args:
        states_BTD: what an encoder gives for "features".
        segments_BT: int or bool; None: every token counts. 0 is padding, which never counts.
        texts: S, for packed rows: text s is made of the tokens of segment s = 1 ... S; a segment that a row has not
            gives zeros, and tokens of segments above S count for nothing. None: each row is one text, which all tokens
            but padding are of, whatever their segments (an attention mask).
        normalise: divide by the length; without it e is m.

    Returns:
        [B, D], or [B, S, D] where `texts` is given; float32 at least.

    Raises:
        UserError: shapes that do not fit, or `texts` without segments or below 1.

    Example:
        >>> states = jnp.array([[[3.0, 0.0], [3.0, 8.0], [9.0, 9.0]]])
        >>> sentence_embeddings(states, jnp.array([[1, 1, 0]]))
        Array([[0.6, 0.8]], dtype=float32)
        >>> sentence_embeddings(states, jnp.array([[1, 1, 2]]), texts=2, normalise=False).tolist()
        [[[3.0, 4.0], [9.0, 9.0]]]

    Reference:
        Reimers and Gurevych (2019), "Sentence-BERT", arXiv:1908.10084: its "mean" pooling, followed by its
        normalisation, as sentence-transformers computes them. Deviations: packed rows; the gradient of a text without
        tokens is zero.
    """
    if states_BTD.ndim != 3 or (segments_BT is not None and segments_BT.shape != states_BTD.shape[:2]):
        told = "none" if segments_BT is None else segments_BT.shape
        raise UserError(f"sentence_embeddings: states {states_BTD.shape}, segments {told}; give [B, T, D] and [B, T]")
    if texts is not None and (segments_BT is None or texts < 1):
        raise UserError(f"sentence_embeddings: texts={texts}; it is 1 at least, and needs segments that count from 1")
    wide = jnp.promote_types(states_BTD.dtype, jnp.float32)
    segments_BT = jnp.ones(states_BTD.shape[:2], jnp.int32) if segments_BT is None else segments_BT.astype(jnp.int32)
    numbers_S = jnp.arange(1, 2 if texts is None else texts + 1)
    text_BT = (segments_BT != 0).astype(jnp.int32) if texts is None else segments_BT
    its_BTS = (text_BT[:, :, None] == numbers_S).astype(wide)
    sum_BSD = jnp.einsum("BTS,BTD->BSD", its_BTS, states_BTD.astype(wide), precision="highest")
    mean_BSD = sum_BSD / jnp.maximum(its_BTS.sum(axis=1), 1)[..., None]
    if normalise:
        mean_BSD = unit(mean_BSD)
    return mean_BSD if texts is not None else mean_BSD[:, 0]
