"""Quantisation of weights to 8 or 4 bits."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbig.codes import BITS, Quantized, encode, layout
from jaxbig.errors import UsageError, UserError
from jaxbig.transform import Split, Transform, selected, technique
from jaxbig.tree import replace
from jaxbig.weight import innermost, is_weight, rebase


@technique
def quantize(
    format: str = "int8",  # noqa: A002  (what the field calls it)
    symmetric: bool = True,
    per: str | None = None,
    group: int = 64,
    where: Any = None,
) -> Transform:
    """Holds weights as 8- or 4-bit codes: ``W ~ scale * codes``.

    Args:
        format: "int8"; "int4", two codes to a byte; "nf4", the 4-bit levels that are equally likely under a normal
            distribution, two to a byte.
        symmetric: codes around zero, ``[-127, 127]`` or ``[-7, 7]``; else the block's range, widened to hold 0, maps
            to ``[0, 255]`` or ``[0, 15]`` by ``scale * (codes - zero)``. nf4 is symmetric.
        per: what shares a scale: "tensor" (one for each layer), "channel" (one for each output channel; for a look-up
            table each row), "group" (runs along the longest input axis). None: channel for int8, group for the others.
        group: the longest run; an axis uses its largest divisor up to that, or one run where that is under a quarter of
            it; runs of under a quarter of `group` go over the other input axes too (3x3 kernels of one channel).
        where: the weights; None: every product and convolution, tables that are only looked up excepted.

    Returns:
        a Transform that trains nothing: the selected leaves of `params` become `Quantized`. A leaf that is a Weight
        already (pruned, say) is quantised at its base.

    Raises:
        UsageError: an unknown format or `per`, nf4 asked to be asymmetric, a group that is no whole number, or a leaf
            that is quantised already.
        UserError: a leaf holds NaN or infinity, which would spread over its block. Only `init` on concrete arrays can
            see that; under jit the block's scale, and all of the block, is what they make of it.

    Error: at most half a step, ``scale / 2`` (int8 per channel: absmax / 254), nf4 at most 0.152 absmax. Cost: a
    product expands the codes of one weight, and again in the backward pass; 1 or 1/2 byte a parameter, and a float32
    a block. Axes of odd length only are not packed: one code a byte.

    Example:
        >>> w = {"w": jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)}
        >>> split = quantize("int8", per="tensor", where="w").init(None, w, {})
        >>> split.params["w"].codes.dtype, split.params["w"].scale.shape
        (dtype('int8'), (1, 1))

    Reference: Dettmers et al. 2023 (QLoRA, nf4), arXiv:2305.14314; Jacob et al. 2018 (affine), arXiv:1712.05877.
    Deviations: nf4's blocks run along the input axis, not over the flattened tensor; its scales are not quantised
    again.
    """
    if format not in BITS:
        raise UsageError(f"quantize: format={format!r}; it is one of {', '.join(BITS)}")
    if per not in (None, "tensor", "channel", "group"):
        raise UsageError(f"quantize: per={per!r}; it is 'tensor', 'channel' or 'group'")
    if format == "nf4" and not symmetric:
        raise UsageError("quantize: nf4 has no asymmetric form; use int4 with symmetric=False")
    if not isinstance(group, int | np.integer) or group < 1:
        raise UsageError(f"quantize: group={group!r}; it is a whole number of at least 1")

    def init(key, params, uses):
        codes = {}
        chosen = selected(
            where, params, lambda path, leaf: any(u.kind in ("product", "conv") for u in uses.get(path, ())), uses
        )
        for path, leaf in chosen.items():
            if not _dense(path, leaf):
                raise UsageError(f"quantize: {path} is no array of floating numbers; choose other leaves with where=")
            use = next((u for u in uses.get(path, ()) if u.kind in ("lookup", "product", "conv")), None)
            shape, packed = layout(leaf.shape, use, format, per, group)
            leaf = leaf.settled() if is_weight(leaf) else leaf
            finite = jnp.isfinite(innermost(leaf)).all()
            if not isinstance(finite, Tracer) and not bool(finite):
                raise UserError(f"quantize: {path} holds NaN or infinity; mend it, or exclude it with where=")
            codes[path] = rebase(leaf, lambda array: encode(array, format, symmetric, shape, packed))  # noqa: B023
        return Split(replace(params, codes), {}, {})

    return Transform("quantize", init, lambda split, key=None: split.params)


def _dense(path: str, leaf: Any) -> bool:
    if not leaf.shape:
        raise UsageError(
            f"quantize: {path} is a scalar, which has nothing to share a scale with; exclude it with where="
        )
    bottom = innermost(leaf)
    if isinstance(bottom, Quantized):
        raise UsageError(f"quantize: {path} is quantised already ({bottom.kind()}); quantise once, or merge() it first")
    return not is_weight(bottom) and jnp.issubdtype(bottom.dtype, jnp.floating)
