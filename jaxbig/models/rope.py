"""Rotary position embeddings: frequencies from a ``config.json``, angles of positions, rotated queries and keys.

Legend of the shape suffixes: B batch, T tokens, H heads, K width of a head, R = K / 2 planes of rotation.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxbig.errors import UserError

BASE = 10_000.0


class Rope(NamedTuple):
    """Which frequencies the planes of a head turn with.

    Attributes:
        base: theta; plane r of R turns with theta^(-r/R) at first.
        kind: "default"; "linear", all slower by `factor`; "dynamic", a larger theta as soon as a position lies beyond
            `length`; "llama3" and "yarn", slow planes slower by `factor`, quick ones as they were.
        factor: by how many times the context was made longer.
        length: that of the context that the frequencies were trained with.
        low, high: between length / high and length / low a wave is stretched by degrees (llama3).
        slow, fast: turns within `length` between which planes are stretched by degrees (yarn).
        truncate: those two planes are whole ones (yarn).
        amplitude: what cosine and sine are multiplied with; None: what yarn computes from `factor`, 1 for the others.
    """

    base: float = BASE
    kind: str = "default"
    factor: float = 1.0
    length: int = 0
    low: float = 1.0
    high: float = 4.0
    slow: float = 1.0
    fast: float = 32.0
    truncate: bool = True
    amplitude: float | None = None


def rope_of(config: Mapping[str, Any], base: float = BASE, layer_type: str | None = None) -> Rope:
    """The rotary embedding that a ``config.json`` describes.

    Args:
        config: the file's fields: either ``rope_parameters``, as transformers writes since version 5, or ``rope_theta``
            and ``rope_scaling``, as before.
        base: theta where the file has none.
        layer_type: of the layers meant, where ``rope_parameters`` has entries by type ("full_attention").

    Returns:
        the description.

    Raises:
        UserError: an unknown kind, a field that it needs is not there, or only a part of each head is rotated.

    Example:
        >>> rope_of({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})[:3]
        (500000.0, 'linear', 2.0)
    """
    found = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if layer_type is not None and isinstance(found.get(layer_type), Mapping):
        found = found[layer_type]
    kind = found.get("rope_type", found.get("type", "default"))
    known = {"default": (), "linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",)}
    known["llama3"] = ("factor", "low_freq_factor", "high_freq_factor")
    if kind not in known:
        raise UserError(f"config.json: rope_type is {kind!r}; jaxbig knows {', '.join(known)}")
    if missing := [name for name in known[kind] if found.get(name) is None]:
        raise UserError(f"config.json: a rope of type {kind!r} needs {missing[0]!r}, and there is none")
    if found.get("partial_rotary_factor", config.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise UserError("config.json: partial_rotary_factor is not 1; jaxbig rotates whole heads only")
    length = config.get("max_position_embeddings", 2048)
    if kind in ("llama3", "yarn"):
        length = found.get("original_max_position_embeddings") or length
        length = config.get("original_max_position_embeddings") or length
    amplitude = found.get("attention_factor")
    if kind == "yarn" and amplitude is None and found.get("mscale") and found.get("mscale_all_dim"):
        amplitude = _growth(found["factor"], found["mscale"]) / _growth(found["factor"], found["mscale_all_dim"])
    return Rope(
        base=float(found.get("rope_theta") or config.get("rope_theta") or base),
        kind=kind,
        factor=float(found.get("factor") or 1.0),
        length=int(length),
        low=float(found.get("low_freq_factor") or 1.0),
        high=float(found.get("high_freq_factor") or 4.0),
        slow=float(found.get("beta_slow") or 1.0),
        fast=float(found.get("beta_fast") or 32.0),
        truncate=bool(found.get("truncate", True)),
        amplitude=None if kind != "yarn" or amplitude is None else float(amplitude),
    )


def frequencies(rope: Rope, width: int) -> np.ndarray:
    """Angle per position, for each plane.

    Args:
        rope: the description.
        width: K, even.

    Returns:
        float64 [R], computed in float64; "dynamic" for positions within the length.

    Raises:
        UserError: an odd width.

    Example:
        >>> frequencies(Rope(base=100.0), 4).tolist()
        [1.0, 0.1]
    """
    if width % 2:
        raise UserError(f"rope: heads of width {width} cannot be rotated in planes; the width has to be even")
    f_R = float(rope.base) ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    if rope.kind == "linear":
        return f_R / rope.factor
    if rope.kind == "llama3":
        turns_R = rope.length * f_R / (2 * np.pi)
        kept_R = np.clip((turns_R - rope.low) / (rope.high - rope.low), 0, 1)
        return kept_R * f_R + (1 - kept_R) * f_R / rope.factor
    if rope.kind == "yarn":
        first, last = _yarn_ends(rope, width)
        kept_R = 1 - np.clip((np.arange(width // 2) - first) / (last - first), 0, 1)
        return kept_R * f_R + (1 - kept_R) * f_R / rope.factor
    return f_R


def angles(rope: Rope, width: int, positions_BT: jax.Array, dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every plane's angle at every position.

    Args:
        rope: the description.
        width: K.
        positions_BT: int [B, T].
        dtype: of the result; the angles are computed in float32 at least.

    Returns:
        two arrays [B, T, R].

    Raises:
        UserError: an odd width, or "dynamic" with a single plane.

    Example:
        >>> cos, sin = angles(Rope(), 8, jnp.arange(3)[None])
        >>> cos.shape, float(cos[0, 0, 0]), float(sin[0, 0, 0])
        ((1, 3, 4), 1.0, 0.0)

    Reference:
        Su et al. (2021), "RoFormer", arXiv:2104.09864; Peng et al. (2023), "YaRN", arXiv:2309.00071 ("dynamic" and
        "yarn"); Llama Team (2024), arXiv:2407.21783 ("llama3"). Deviations from transformers: frequencies are computed
        in float64 and rounded once, theirs in float32; they differ by a few parts in 10^7. "dynamic" depends on the
        largest position of this call alone, theirs on the largest of all calls; keys in a cache stay as they were
        rotated, as theirs do.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    f_R = jnp.asarray(frequencies(rope, width), wide)
    if rope.kind == "dynamic":
        if width == 2:
            raise UserError("rope: 'dynamic' is not defined for heads of width 2, which have one plane")
        length = jnp.maximum(positions_BT.max() + 1, rope.length).astype(wide)
        grown = rope.factor * length / rope.length - (rope.factor - 1)
        f_R = f_R * grown ** jnp.asarray(-np.arange(0, width, 2) / (width - 2), wide)
    angle_BTR = positions_BT[..., None].astype(wide) * f_R
    amplitude = rope.amplitude
    if amplitude is None:
        amplitude = _growth(rope.factor) if rope.kind == "yarn" else 1.0
    return (amplitude * jnp.cos(angle_BTR)).astype(dtype), (amplitude * jnp.sin(angle_BTR)).astype(dtype)


def rotate(x_BTHK: jax.Array, cos_BTR: jax.Array, sin_BTR: jax.Array) -> jax.Array:
    """Each head's halves turned against each other: plane r holds entries r and R + r, as transformers stores them.

    Args:
        x_BTHK: queries or keys.
        cos_BTR, sin_BTR: what `angles` gives.

    Returns:
        [B, T, H, K] in x's dtype.

    Example:
        >>> x = jnp.array([1.0, 2.0]).reshape(1, 1, 1, 2)
        >>> rotate(x, jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1))).ravel().tolist()
        [-2.0, 1.0]
    """
    cos, sin = (rearrange(each, "B T R -> B T 1 R") for each in (cos_BTR, sin_BTR))
    one, two = jnp.split(x_BTHK, 2, axis=-1)
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1).astype(x_BTHK.dtype)


def _growth(factor: float, strength: float = 1.0) -> float:
    """YaRN's temperature for a context that is `factor` times longer."""
    return 1.0 if factor <= 1 else 0.1 * strength * math.log(factor) + 1.0


def _yarn_ends(rope: Rope, width: int) -> tuple[float, float]:
    """The first plane that is stretched at all, and the first that is stretched wholly."""
    plane = lambda turns: width * math.log(rope.length / (turns * 2 * math.pi)) / (2 * math.log(rope.base))  # noqa: E731
    low, high = plane(rope.fast), plane(rope.slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    return low, high + 0.001 if low == high else high
