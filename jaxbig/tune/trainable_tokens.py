"""Trainable tokens: a few rows of a table of embeddings."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbig.contraction import contract
from jaxbig.errors import UsageError
from jaxbig.matrix import lookup
from jaxbig.site import sites
from jaxbig.transform import Split, Transform, technique
from jaxbig.tree import paths, replace
from jaxbig.weight import Weight, aligned, materialise, product, static


class Rows(Weight):
    """`base` with some rows along one axis replaced by others.

    Attributes:
        base: an array or a Weight.
        rows: of the base's shape, but for its length along the axis: the number of rows.
        tokens: int32, which rows they stand for, without repetition.
        axis: that of the look-up, counted from the right.
    """

    base: Any
    rows: Any
    tokens: Any
    axis: int = static(default=-2)

    def axes(self):
        along = tuple(None if i == self.axis else i for i in range(-self.ndim, 0))
        return {"base": aligned(self.base), "rows": along, "tokens": (None,)}

    def materialise(self):
        base = materialise(self.base)
        return _put(base, self.rows.astype(base.dtype), self.tokens, self.axis)

    def product(self, x, c):
        label = c.w[self.axis]
        y = product(self.base, x, c) if label in c.out and label not in c.x else NotImplemented
        before = lookup(self.base, self.tokens, self.axis)
        if y is NotImplemented or before is NotImplemented:
            return super().product(x, c)
        # What the rows differ by is added, so that rows that do not differ change no bit: a product of a few rows need
        # not be rounded as those rows are in a product of all.
        change = (self.rows - before.astype(self.rows.dtype)).astype(x.dtype)
        few = contract(x, c.x, change, c.w, c.out, c.precision, c.preferred).astype(y.dtype)
        along = c.out.index(label) - len(c.out)
        moved = jnp.moveaxis(y, along, 0).at[self.tokens].add(jnp.moveaxis(few, along, 0), unique_indices=True)
        return jnp.moveaxis(moved, 0, along)

    def lookup(self, ids, axis):
        found = lookup(self.base, ids, axis) if axis == self.axis else NotImplemented
        if found is NotImplemented:
            return found
        same = ids[:, None] == self.tokens
        mine = jnp.take(self.rows, jnp.argmax(same, axis=1), axis=axis).astype(found.dtype)
        hit = same.any(axis=1).reshape(-1, *[1] * (-axis - 1))
        return jnp.where(hit, mine, found)


def _put(array: Any, rows: Any, tokens: Any, axis: int) -> Any:
    """`array` with the rows `tokens` along an axis replaced."""
    moved = jnp.moveaxis(array, axis, 0).at[tokens].set(jnp.moveaxis(rows, axis, 0), unique_indices=True)
    return jnp.moveaxis(moved, 0, axis)


@technique
def trainable_tokens(tokens: Sequence[int], where: Any = None) -> Transform:
    """Trains given rows of a table: ``E'[t] = e_t`` for t in `tokens`, ``E'[t] = E[t]`` elsewhere.

    Args:
        tokens: which rows, such as the ids of tokens that are new.
        where: the tables; None: every table that is looked up. In a tied head the rows are replaced as well.

    Returns:
        a Transform; ``train[path] = {"rows": [*stack, len(tokens), D]}`` (the table's axes in their own order), float32
        (float64 over a float64 base).

    Raises:
        UsageError: no tokens, one twice, or one that a table has no row for; a selected leaf that is not looked up.

    Init: the table's rows: the model is unchanged, bit for bit.

    Cost: ``len(tokens) D`` parameters a table. A look-up compares each id with each of `tokens`; a tied head
    multiplies the rows too, ``2 len(tokens) D`` FLOPs a position, and writes them among its logits. No second table is
    formed.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, ids = {"table": jnp.arange(10.0).reshape(5, 2)}, jnp.array([0, 3])
        >>> uses = usage(lambda p, ids: p["table"][ids], params, ids)
        >>> trainable_tokens([3, 4]).init(None, params, uses).train["table"]["rows"].tolist()
        [[6.0, 7.0], [8.0, 9.0]]

    Reference: PEFT's ``TrainableTokensConfig`` (Hugging Face 2025); no paper. Deviation: all tables that are
    looked up by default (positions and token types too: name yours with `where`); PEFT takes the input embedding.

    Limit: in a chain, what a later link of this kind says of a token hides what an earlier one says of the same.
    """
    chosen = [int(token) for token in tokens] if np.ndim(tokens) == 1 else []
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise UsageError(f"trainable_tokens: tokens={tokens!r}; give the numbers of rows, each once")

    def init(key, params, uses):
        train, state = {}, {}
        for path, site in sites("trainable_tokens", where, params, uses, lookup=True).items():
            axis, count = site.in_axes[0], site.inputs[0]
            if max(chosen) >= count:
                raise UsageError(
                    f"trainable_tokens: {path} has {count} rows, and tokens has {max(chosen)}; rows are 0 up"
                )
            ids = jnp.asarray(chosen, jnp.int32)
            rows = jnp.take(materialise(site.leaf), ids, axis=axis)
            train[path] = {"rows": rows.astype(site.dtype)}
            state[path] = Rows(None, None, ids, axis)
        return Split(params, train, state)

    def apply(split, key=None):
        bases = paths(split.params)  # a later link that trains the base puts it under the rows in its own turn
        return replace(
            split.params,
            {path: split.state[path].replace(base=bases.get(path), **its) for path, its in split.train.items()},
        )

    return Transform("trainable_tokens", init, apply)
