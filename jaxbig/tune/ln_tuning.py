"""LN-tuning: training the normalisation layers alone."""

from typing import Any

from jaxbig.transform import Transform, move, put_back, selected, technique
from jaxbig.tree import paths


@technique
def ln_tuning(where: Any = None) -> Transform:
    """Trains scale and bias of normalisation layers: ``y = g norm(x) + b`` with all else frozen.

    Args:
        where: the leaves; None: every scale, and the bias that goes with it, whatever they are called. A scale is a
            leaf of one axis at least that is only ever multiplied onto activations entry by entry, in no product. Its
            bias has the same parent and the same shape, is only ever added, and is the next such leaf in the program.

    Returns:
        a Transform; ``train[path]`` is a copy of the scale or of the bias.

    Raises:
        UsageError: the model multiplies no scale onto its activations.

    Init: the model is unchanged, bit for bit.

    Cost: twice the width a normalisation layer (once, where it has no bias); no FLOPs are added, and weight gradients
    are not computed.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxbig.usage import usage
        >>> params = {"norm": {"g": jnp.ones(2), "b": jnp.zeros(2)}, "out": {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}}
        >>> def model(p, x):
        ...     y = x / jnp.linalg.norm(x) * p["norm"]["g"] + p["norm"]["b"]
        ...     return y @ p["out"]["w"] + p["out"]["b"]
        >>> list(ln_tuning().init(None, params, usage(model, params, jnp.ones((5, 2)))).train)
        ['norm/b', 'norm/g']

    Reference: Zhao et al. 2023, arXiv:2312.11420. Deviations: the paper trains the connector between vision and
    language, the embedding and the head with it; chain ``full(where=...)`` for that. Every kind of normalisation
    counts.

    Limits: a factor for each channel that follows no normalisation (a layer scale) is taken as well: leave it out with
    `where`. A scale of which the model multiplies ``1 + g`` is not found: name it.
    """

    def init(key, params, uses):
        shape = {path: tuple(leaf.shape) for path, leaf in paths(params).items()}
        found = _norms(uses, shape)
        return move(params, selected(where, params, lambda path, leaf: path in found, uses))

    return Transform("ln_tuning", init, put_back)


def _norms(uses, shape) -> set[str]:
    """The paths of scales and of their biases."""
    order = [path for path in uses if path in shape]  # the program's
    scales = [path for path in order if _only(uses[path], ("mul",)) and any(n != 1 for n in shape[path])]
    found = set(scales)
    for scale in scales:
        parent = scale.rpartition("/")[0]
        after = order[order.index(scale) + 1 :]
        biases = (
            path
            for path in after
            if path.rpartition("/")[0] == parent
            and shape[path] == shape[scale]
            and _only(uses[path], ("add", "sub", "add_any"))
        )
        found |= set(list(biases)[:1])
    return found


def _only(its, details) -> bool:
    return bool(its) and all(use.kind == "other" and use.detail in details for use in its)
