"""A published model as objectives call one: with a batch's arrays in order."""

from typing import Any

import flax.linen as nn
import jax


class Reader(nn.Module):
    """``reader(ids, *arrays, train=...)`` is ``module(ids, **{name: array}, train=...)``, with the module's parameters.

    Objectives call a module with arrays of the batch one after the other; published models take most of theirs by name.

    Args:
        module: such as `jaxbig.load`'s.
        takes: the names of the arrays that follow the ids.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxbig.models.bert import Bert
        >>> bert = Bert(9, 8, 1, 2, 16, 8, task="sequence_classification", num_classes=2)
        >>> ids = jnp.array([[1, 2, 0]])
        >>> params = bert.init(jax.random.key(0), ids)["params"]
        >>> Reader(bert, ("segments",)).apply({"params": params}, ids, ids > 0).shape
        (1, 2)
    """

    module: nn.Module
    takes: tuple[str, ...] = ()

    def setup(self) -> None:
        nn.share_scope(self, self.module)

    def __call__(self, ids: jax.Array, *arrays: Any, train: bool = False) -> Any:
        return self.module(ids, train=train, **dict(zip(self.takes, arrays, strict=True)))
