"""Bicubic interpolation as torch computes it, which published position embeddings are resized by.

Legend of the shape suffixes: H rows, W columns, I and J those of the result, D width, T positions.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange


def bicubic_matrix(old: int, new: int, sharpness: float = -0.75) -> np.ndarray:
    """The linear map of a row of `old` points to one of `new` points.

    Point i of the result lies at ``x = (i + 1/2) old / new - 1/2``; the four points around it count by Keys' kernel,
    and what lies outside is the nearest point inside.

    Args:
        old, new: numbers of points.
        sharpness: Keys' parameter a.

    Returns:
        float64 [new, old]; each row's sum is 1.

    Example:
        >>> bicubic_matrix(2, 4).round(3).tolist()[0]
        [1.105, -0.105]

    Reference:
        Keys (1981), "Cubic convolution interpolation for digital image processing"; there a = -1/2, torch has -3/4.
        Nothing is smoothed where the result is smaller, as in torch without ``antialias``.
    """
    a, found = sharpness, np.zeros((new, old))
    places = (np.arange(new) + 0.5) * old / new - 0.5
    for shift in (-1, 0, 1, 2):
        points = np.floor(places) + shift
        x = np.abs(places - points)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        np.add.at(found, (np.arange(new), np.clip(points, 0, old - 1).astype(int)), np.where(x <= 1, near, far))
    return found


def bicubic(x_HWD: jax.Array, rows: int, columns: int) -> jax.Array:
    """An image resized, channel by channel; see `bicubic_matrix`.

    Args:
        x_HWD: the image.
        rows, columns: of the result.

    Returns:
        array [rows, columns, D], of x's dtype; computed in float32 at least.

    Example:
        >>> bicubic(jnp.ones((2, 2, 1)), 3, 5).shape
        (3, 5, 1)
    """
    wide = jnp.promote_types(x_HWD.dtype, jnp.float32)
    down_IH, across_JW = (
        jnp.asarray(bicubic_matrix(old, new), wide) for old, new in zip(x_HWD.shape[:2], (rows, columns), strict=True)
    )
    return jnp.einsum("IH,JW,HWD->IJD", down_IH, across_JW, x_HWD.astype(wide)).astype(x_HWD.dtype)


def resized_positions(positions_TD: jax.Array, side: int, rows: int, columns: int) -> jax.Array:
    """Position embeddings of a square grid of patches for a grid of another size.

    Args:
        positions_TD: those of tokens in front, which stay, and then of side * side patches, row by row.
        side: of the grid that they are for.
        rows, columns: of the other grid.

    Returns:
        array [T - side * side + rows * columns, D]; the same array where the grid is the same.

    Example:
        >>> resized_positions(jnp.ones((5, 3)), 2, 1, 3).shape
        (4, 3)
    """
    if (rows, columns) == (side, side):
        return positions_TD
    front_TD, grid_ND = jnp.split(positions_TD, [positions_TD.shape[0] - side * side])
    grid_HWD = bicubic(rearrange(grid_ND, "(H W) D -> H W D", H=side), rows, columns)
    return jnp.concatenate([front_TD, rearrange(grid_HWD, "H W D -> (H W) D")])
