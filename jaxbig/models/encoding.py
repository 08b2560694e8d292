"""Piecewise-linear encoding of numbers, for networks over tables.

Legend of the shape suffixes: B batch, J features, K bins, E = K + 1 edges.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UserError


def quantile_edges(x_BJ: np.ndarray, bins: int) -> np.ndarray:
    """Edges of bins that hold equally many of the given numbers, each feature's own; to be taken from training data.

    Args:
        x_BJ: numbers; NaN (missing) is left out.
        bins: K.

    Returns:
        array [J, K + 1], rising along each row; where a value is frequent, edges coincide.

    Raises:
        UserError: no bin asked for, or a feature without a number.

    Example:
        >>> quantile_edges(np.arange(5.0)[:, None], 2).tolist()
        [[0.0, 2.0, 4.0]]
    """
    if bins < 1:
        raise UserError(f"quantile_edges: bins={bins}; use at least 1")
    x_BJ = np.asarray(x_BJ)
    empty = np.flatnonzero(np.isnan(x_BJ).all(axis=0)).tolist()
    if empty:
        raise UserError(f"quantile_edges: features {empty} hold no number; leave them out")
    return np.nanquantile(x_BJ, np.linspace(0, 1, bins + 1), axis=0).T.astype(x_BJ.dtype)


def piecewise_linear(x_BJ: jax.Array, edges_JE: jax.Array) -> jax.Array:
    """Encodes each number by how far it fills each bin of its feature.

    ``y_k = (x - e_k) / (e_{k+1} - e_k)``, not below 0 but in the first bin, not above 1 but in the last. A bin whose
    edges coincide is a step: 1 from that edge on, else 0.

    Args:
        x_BJ: numbers.
        edges_JE: rising edges, e.g. of `quantile_edges`.

    Returns:
        array [B, J, K], in x's dtype.

    Example:
        >>> piecewise_linear(jnp.array([[3.0], [5.0]]), jnp.array([[0.0, 2.0, 4.0]])).tolist()
        [[[1.0, 0.5]], [[1.0, 1.5]]]

    Reference:
        Gorishniy, Rubachev, Babenko (2022), "On embeddings for numerical features in tabular deep learning",
        arXiv:2203.05556, equation 1. Deviation: the paper drops empty bins; here they stay, so that all features have
        the same number.
    """
    edges_JE = jnp.asarray(edges_JE, x_BJ.dtype)
    low_JK, high_JK = edges_JE[:, :-1], edges_JE[:, 1:]
    size_JK, x_BJ1 = high_JK - low_JK, x_BJ[..., None]
    y_BJK = (x_BJ1 - low_JK) / jnp.where(size_JK > 0, size_JK, 1)
    index_K = jnp.arange(low_JK.shape[1])
    y_BJK = jnp.where(index_K > 0, jnp.maximum(y_BJK, 0), y_BJK)
    y_BJK = jnp.where(index_K < index_K.size - 1, jnp.minimum(y_BJK, 1), y_BJK)
    return jnp.where(size_JK > 0, y_BJK, (x_BJ1 >= low_JK).astype(x_BJ.dtype))
