"""BitFit: training the biases alone."""

from typing import Any

from jaxbig.transform import Transform, move, put_back, selected, technique
from jaxbig.tree import paths


@technique
def bitfit(where: Any = None) -> Transform:
    """Trains the biases: ``y = W x + b`` with W frozen.

    Args:
        where: the leaves; None: every bias. A bias is a leaf that is only ever added, in the shape of some product's
            output or of some multiplied leaf (a normalisation's scale); position embeddings are none.

    Returns:
        a Transform; ``train[path]`` is a copy of the bias.

    Raises:
        UsageError: the model has no bias.

    Cost: ``out`` parameters a layer; no FLOPs are added, and weight gradients are not computed.

    Reference: Ben Zaken et al. 2021, arXiv:2106.10199. Deviation: the task head is not trained with it; chain
    ``full(where="head/.*")`` for that.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxbig.usage import usage
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3), "position": jnp.ones((5, 2))}
        >>> uses = usage(lambda p, x: (x + p["position"]) @ p["w"] + p["b"], params, jnp.ones((5, 2)))
        >>> list(bitfit().init(None, params, uses).train)
        ['b']
    """

    def init(key, params, uses):
        shapes = _bias_shapes(uses)
        shape = {path: leaf.shape for path, leaf in paths(params).items()}
        return move(
            params,
            selected(
                where, params, lambda path, leaf: _added(uses.get(path, ())) and _long(shape[path]) in shapes, uses
            ),
        )

    return Transform("bitfit", init, put_back)


def _long(shape) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _added(uses) -> bool:
    return bool(uses) and all(use.kind == "other" and use.detail in ("add", "sub", "add_any") for use in uses)


def _bias_shapes(uses) -> set[tuple[int, ...]]:
    shapes = set()
    for its in uses.values():
        for use in its:
            if use.kind in ("product", "conv"):
                kept = [n for i, n in zip(range(-len(use.shape), 0), use.shape, strict=True) if i not in use.in_axes]
                shapes.add(_long(kept))
            elif use.detail == "mul":
                shapes.add(_long(use.shape))
    return shapes
