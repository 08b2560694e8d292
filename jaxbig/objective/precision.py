"""Mixed precision: an objective computed in a smaller dtype over float32 parameters."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.objective.base import Aux, Objective
from jaxbig.tree import PyTree
from jaxbig.weight import cast, is_weight


def computed_in(objective: Objective, dtype: Any, keep: Sequence[str] = ("label", "mask", "weight")) -> Objective:
    """The objective with parameters and inputs cast to `dtype` on their way into the model; gradients come back in the
    parameters' own dtype.

    Works on models that know nothing of it, as long as they compute in the dtype that they are given. What is trained,
    its optimiser, ``vars`` (BatchNorm statistics) and metrics keep their dtypes. bfloat16 has float32's range, so the
    loss needs no scaling; with float16 small gradients are lost.

    Args:
        objective: the objective.
        dtype: of the computation, usually bfloat16.
        keep: entries of the batch that stay as they are.

    Returns:
        an objective. Memory: one copy of the parameters in `dtype` where a Weight's parts are not used in place.

    Example:
        >>> import flax.linen as nn
        >>> from jaxbig.objective import classify
        >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
        >>> batch = {"image": jnp.ones((4, 2)), "label": jnp.zeros(4, jnp.int32)}
        >>> objective = computed_in(classify(nn.Dense(3)), "bfloat16")
        >>> grads = jax.grad(lambda params: objective(params, {}, batch, None)[0])(params)
        >>> grads["kernel"].dtype.name, "bf16[4,2]" in str(jax.make_jaxpr(objective)(params, {}, batch, None))
        ('float32', True)

    Reference:
        Micikevicius et al. (2017), "Mixed precision training", arXiv:1710.03740; Kalamkar et al. (2019), "A study of
        bfloat16 for deep learning training", arXiv:1905.12322.
    """

    def smaller(params: PyTree, variables: PyTree, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Aux]:
        small = jax.tree.map(lambda leaf: cast(leaf, dtype), params, is_leaf=is_weight)
        inputs = {name: array if name in keep else cast(jnp.asarray(array), dtype) for name, array in batch.items()}
        loss, aux = objective(small, variables, inputs, key)
        after = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)), aux.vars, variables)
        return loss.astype(jnp.float32), aux._replace(vars=after)

    return smaller
