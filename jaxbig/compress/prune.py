"""Magnitude pruning: a mask that stays through training and merging."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UsageError
from jaxbig.transform import Split, Transform, selected, technique
from jaxbig.tree import PyTree, nbytes, paths, replace
from jaxbig.weight import Weight, aligned, innermost, is_weight, materialise, rebase, static


class Sparse(Weight):
    """``base * mask``.

    Attributes:
        base: an array or a Weight; what it holds where the mask is False never matters.
        mask: bool, of the logical shape.
        pattern: how the mask was made, for tables: "80%" or "2:4".
    """

    base: Any
    mask: Any
    pattern: str = static()

    @property
    def shape(self):
        return tuple(self.mask.shape)

    @property
    def dtype(self):
        return self.base.dtype

    def axes(self):
        return {"base": aligned(self.mask), "mask": aligned(self.mask)}

    def settled(self):
        masked = rebase(self.base, lambda base: jnp.where(self.mask, base, jnp.zeros_like(base)))
        return self.replace(base=masked.settled() if is_weight(masked) else masked)

    def kind(self):
        return f"{super().kind()} {self.pattern}"

    def materialise(self):
        base = materialise(self.base)
        return jnp.where(self.mask, base, jnp.zeros_like(base))


@technique
def prune(
    sparsity: float | None = None, pattern: str | None = None, scope: str = "global", where: Any = None
) -> Transform:
    """Removes the weights of smallest magnitude: ``W' = W * mask``.

    Args:
        sparsity: the share to remove, in (0, 1); exactly ``round(sparsity * n)`` weights go.
        pattern: instead of `sparsity`, "N:M": of each M neighbours along the last input axis the N largest stay.
        scope: "global": one ranking over all selected weights; "layer": the same share of each leaf, and of each layer
            of a stack.
        where: the weights; None: every product and convolution but the model's head and look-up tables, and, for N:M,
            those whose last input axis M divides.

    Returns:
        a Transform that trains nothing itself: the selected leaves of `params` become `Sparse`. Train what is left with
        ``chain(prune(0.8), full())``: gradients pass through the mask, so removed weights stay removed.

    Raises:
        UsageError: neither or both of `sparsity` and `pattern`; values out of range; an axis that M does not divide.

    Example:
        >>> split = prune(0.5, where="w").init(None, {"w": jnp.array([[1.0, -4.0], [3.0, 2.0]])}, {})
        >>> split.params["w"].materialise().tolist()
        [[0.0, -4.0], [3.0, 0.0]]

    Cost: one byte a weight for the mask; a product masks the weight anew in the forward and in the backward pass.

    Reference: Han et al. 2015, arXiv:1506.02626 (magnitude); Mishra et al. 2021, arXiv:2104.08378 (2:4). Deviations:
    one-shot; ties go by position.
    """
    if (sparsity is None) == (pattern is None):
        raise UsageError("prune: give either sparsity=0.8, say, or pattern='2:4'")
    if isinstance(sparsity, float | int) and not 0 < sparsity < 1:
        raise UsageError(f"prune: sparsity={sparsity}; it lies between 0 and 1")
    if scope not in ("global", "layer"):
        raise UsageError(f"prune: scope={scope!r}; it is 'global' or 'layer'")
    keep, of = _n_m(pattern) if pattern else (0, 1)

    def init(key, params, uses):
        def default(path, leaf):
            its = uses.get(path, ())
            fits = leaf.shape[_last_input(leaf, its)] % of == 0 if leaf.shape else False
            return (
                any(u.kind in ("product", "conv") for u in its)
                and fits
                and not any(u.head or u.kind == "lookup" for u in its)
            )

        leaves = selected(where, params, default, uses)
        if not leaves:  # an empty tree
            return Split(params, {}, {})
        size = {path: jnp.abs(materialise(leaf)) for path, leaf in leaves.items()}
        if pattern:
            masks = {p: n_of_m(a, keep, of, _last_input(a, uses.get(p, ())), p) for p, a in size.items()}
        elif scope == "layer":
            masks = {p: _layerwise(a, sparsity, uses.get(p, ())) for p, a in size.items()}
        else:
            masks = _globally(size, sparsity)
        label = pattern or f"{100 * (sparsity or 0):g}%"
        return Split(replace(params, {p: Sparse(leaf, masks[p], label) for p, leaf in leaves.items()}), {}, {})

    return Transform("prune", init, lambda split, key=None: split.params)


def _n_m(pattern: str) -> tuple[int, int]:
    n, _, m = pattern.partition(":")
    if not (n.isdigit() and m.isdigit() and 0 < int(n) < int(m)):
        raise UsageError(f"prune: pattern={pattern!r}; it reads N:M with N < M, such as 2:4")
    return int(n), int(m)


def _last_input(leaf, uses) -> int:
    use = next((u for u in uses if u.kind in ("product", "conv")), None)
    return use.in_axes[-1] if use else max(-2, -len(leaf.shape))


def _kept(flat, sparsity):
    """Mask of a flat array of magnitudes, its smallest ``round(sparsity * n)`` entries False."""
    drop = round(sparsity * flat.size)
    order = jnp.argsort(flat, stable=True)
    return jnp.zeros(flat.shape, bool).at[order[drop:]].set(True)


def _globally(size: dict[str, Any], sparsity) -> dict[str, Any]:
    flat = jnp.concatenate([a.astype(jnp.float32).reshape(-1) for a in size.values()])
    mask, masks, start = _kept(flat, sparsity), {}, 0
    for path, a in size.items():
        masks[path] = mask[start : start + a.size].reshape(a.shape)
        start += a.size
    return masks


def _layerwise(a, sparsity, uses):
    use = next((u for u in uses if u.kind in ("product", "conv")), None)
    stack = [i for i in range(-a.ndim, 0) if use and i not in use.in_axes + use.out_axes]
    rows = jnp.moveaxis(a, stack, range(len(stack)))
    masks = jax.vmap(lambda row: _kept(row, sparsity))(rows.reshape(math.prod(rows.shape[: len(stack)]), -1))
    return jnp.moveaxis(masks.reshape(rows.shape), range(len(stack)), stack)


def n_of_m(size, keep: int, of: int, axis: int, path: str = "the array"):
    """The mask that keeps the `keep` largest of each `of` neighbours along `axis`.

    Example:
        >>> n_of_m(jnp.array([4.0, 1.0, 3.0, 2.0]), 2, 4, -1).tolist()
        [True, False, True, False]
    """
    if size.shape[axis] % of:
        raise UsageError(
            f"prune: {path} has {size.shape[axis]} inputs, which {of} does not divide; exclude it with where="
        )
    rows = jnp.moveaxis(size, axis, -1)
    runs = rows.reshape(*rows.shape[:-1], -1, of)
    rank = jnp.argsort(jnp.argsort(-runs, axis=-1, stable=True), axis=-1, stable=True)
    return jnp.moveaxis((rank < keep).reshape(rows.shape), -1, axis)


def packed_bytes(params: PyTree) -> int:
    """Bytes of a tree if each pruned leaf were stored as its kept entries and one bit of mask an entry.

    Args:
        params: arrays and Weights; masks have to be concrete.

    Returns:
        bytes; leaves that are not pruned count as they are held.

    Example:
        >>> leaf = Sparse(jnp.ones(16, jnp.float32), jnp.arange(16) < 4, "75%")
        >>> packed_bytes({"w": leaf})  # 4 entries of 4 bytes, 16 bits
        18
    """
    total = 0
    for leaf in paths(params).values():
        nested = leaf
        while is_weight(nested) and not isinstance(nested, Sparse):
            nested = getattr(nested, "base", None)
        total += nbytes(leaf)
        if isinstance(nested, Sparse):
            entries = innermost(nested)
            codes = entries.codes if is_weight(entries) else entries
            total -= nbytes(codes) + nbytes(nested.mask)
            total += -(-nbytes(codes) * int(nested.mask.sum()) // nested.mask.size) + -(-nested.mask.size // 8)
    return total
