"""Training leaves as they are, or not at all."""

from typing import Any

import jax.numpy as jnp

from jaxbig.errors import UsageError
from jaxbig.transform import Split, Transform, move, put_back, selected, technique
from jaxbig.weight import innermost, is_weight


@technique
def full(where: Any = None) -> Transform:
    """Trains the selected leaves themselves: ordinary training or fine-tuning.

    Args:
        where: the leaves; None: every floating one.

    Returns:
        a Transform. ``train[path]`` is a copy of the leaf, and None stands in its place in `params`. Of a Weight over a
        floating base (a pruned leaf) the base is trained and the rest stays.

    Raises:
        UsageError: a selected leaf has nothing that gradients can train (codes, integers), or was moved already.

    Example:
        >>> split = full().init(None, {"w": jnp.ones(2)}, {})
        >>> split.params, split.train["w"].tolist()
        ({'w': None}, [1.0, 1.0])
    """

    def init(key, params, uses):
        chosen = selected(where, params, lambda path, leaf: trainable(leaf))
        for path, leaf in chosen.items():
            if not trainable(leaf):
                kind = leaf.kind() if is_weight(leaf) else f"an array of {leaf.dtype}"
                raise UsageError(
                    f"full: {path} is {kind}, which gradients cannot train; use lora() there, or merge first"
                )
        return move(params, chosen)

    return Transform("full", init, put_back)


def trainable(leaf: Any) -> bool:
    """Whether the bottom of a leaf is a floating array."""
    bottom = innermost(leaf)
    return not is_weight(bottom) and jnp.issubdtype(bottom.dtype, jnp.floating)


@technique
def freeze() -> Transform:
    """Trains nothing; the identity. For the parts of a `partition` that are to stay as they are.

    Example:
        >>> freeze().init(None, {"w": 1.0}, {})
        Split(params={'w': 1.0}, train={}, state={})
    """
    return Transform("freeze", lambda key, params, uses: Split(params, {}, {}), lambda split, key=None: split.params)
