"""Maximum pooling whose gradient is quick on every back end.

``nn.max_pool`` is right too; but the gradient of its ``reduce_window`` is a select-and-scatter, slow on a CPU. That of
a reduction by maximum divides by the number of entries that equal the maximum, which may be none where XLA computes the
entries a second time with another rounding. So: pairwise maxima, whose gradient is a selection.

Legend of the shape suffixes: B batch, H height, W width, C channels.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange


def max_pool(x_BHWC: jax.Array, window: int = 2) -> jax.Array:
    """Maximum over windows that do not overlap; rows and columns that fill no window are left out.

    ``y[b, h, w, c] = max_{i, j < window} x[b, window h + i, window w + j, c]``, the same as
    ``nn.max_pool(x, (window, window), strides=(window, window))``.

    Args:
        x_BHWC: images.
        window: side of the window, which is the stride too.

    Returns:
        array [B, H // window, W // window, C].

    Example:
        >>> max_pool(jnp.arange(20.0).reshape(1, 4, 5, 1))[0, :, :, 0].tolist()
        [[6.0, 8.0], [16.0, 18.0]]
    """
    _, height, width, _ = x_BHWC.shape
    whole_BHWC = x_BHWC[:, : height // window * window, : width // window * window]
    rows_BHWC = functools.reduce(jnp.maximum, rearrange(whole_BHWC, "B (H i) W C -> i B H W C", i=window))
    return functools.reduce(jnp.maximum, rearrange(rows_BHWC, "B H (W j) C -> j B H W C", j=window))


def max_pool_overlapping(x_BHWC: jax.Array, window: int = 3, stride: int = 2, padding: int = 1) -> jax.Array:
    """Maximum over windows that overlap, with ``padding`` rows and columns of -inf on every side.

    ``y[b, h, w, c] = max_{i, j < window} x[b, stride h + i - padding, stride w + j - padding, c]``, the same as
    ``nn.max_pool(x, (window, window), (stride, stride), ((padding, padding), (padding, padding)))``.

    Args:
        x_BHWC: images.
        window: side of the window.
        stride: step from one window to the next.
        padding: rows and columns added on each side.

    Returns:
        array [B, (H + 2 padding - window) // stride + 1, the same of W, C].

    Example:
        >>> max_pool_overlapping(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]

    Cost: 2 (window - 1) maxima of strided slices, one axis after the other. Where several entries of a window are its
    maximum, each pair shares the gradient; ``nn.max_pool`` gives it to the first.
    """
    sides = (padding, padding)
    x_BHWC = jnp.pad(x_BHWC, ((0, 0), sides, sides, (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):
        last = x_BHWC.shape[axis] - window
        shifted = [jax.lax.slice_in_dim(x_BHWC, i, i + last + 1, stride, axis) for i in range(window)]
        x_BHWC = functools.reduce(jnp.maximum, shifted)
    return x_BHWC
