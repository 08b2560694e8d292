"""Exchange of the classification head, for transfer to other classes."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import UserError


def replace_head(
    params: Mapping[str, Any], key: jax.Array, num_classes: int, init: Any = None, name: str = "head"
) -> dict[str, Any]:
    """The parameters with a new head ``W [D, N], b [N]`` in place of the old one: W ~ normal(0, 1/D), b = 0.

    Args:
        params: parameters of a model whose last layer is an `nn.Dense` called `name`; they are not changed.
        key: typed PRNG key.
        num_classes: N.
        init: initialiser (key, shape, dtype) -> array of W; None: LeCun normal.
        name: the head's name at the top of the tree.

    Returns:
        a tree that shares all other leaves with `params`; dtypes are the old head's.

    Raises:
        UserError: there is no such head, or it is no dense layer.

    Example:
        >>> params = {"body": {"w": jnp.ones(2)}, "head": {"kernel": jnp.ones((4, 10)), "bias": jnp.ones(10)}}
        >>> replace_head(params, jax.random.key(0), 3)["head"]["kernel"].shape
        (4, 3)

    Reference:
        Yosinski et al. (2014), "How transferable are features in deep neural networks?", arXiv:1411.1792.
    """
    if name not in params:
        raise UserError(f"replace_head: no {name!r} at the top of the parameters, only {sorted(params)}; give its name")
    head = params[name]
    if not isinstance(head, Mapping) or "kernel" not in head or len(head["kernel"].shape) != 2:
        raise UserError(f"replace_head: {name!r} is no dense layer with a kernel of two axes; replace it by hand")
    kernel = head["kernel"]
    new = {"kernel": (init or nn.initializers.lecun_normal())(key, (kernel.shape[0], num_classes), kernel.dtype)}
    if "bias" in head:
        new["bias"] = jnp.zeros((num_classes,), head["bias"].dtype)
    return {**params, name: new}
