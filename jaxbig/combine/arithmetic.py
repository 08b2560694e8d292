"""Task arithmetic: what tuning changed, added and taken away."""

from collections.abc import Sequence

from jaxbig.combine.rule import LINEAR
from jaxbig.combine.trees import moved
from jaxbig.tree import PyTree


def task_arithmetic(base: PyTree, trees: Sequence[PyTree], weights: Sequence[float] | None = None) -> PyTree:
    """Adds task vectors to a model: ``theta = base + sum_t w_t (theta_t - base)``.

    Args:
        base: the tree that the others were tuned from; Weights are merged first.
        trees: the tuned trees, with the same paths and shapes.
        weights: one number for each; None: 1. A negative one makes the model forget a task; ``[1, -1, 1]`` is the
            analogy "a is to b as c is to ...".

    Returns:
        a tree of plain arrays of the base's structure; floating leaves are computed in float32 at least and rounded
        once, to the dtype that the trees' dtypes promote to; others are the base's.

    Raises:
        UsageError: no trees, other paths or shapes, or weights that do not fit.

    Cost: as many bytes as all the trees hold, twice over, while it runs; nothing at inference.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxbig.fidelity import fidelity
        >>> base, one, two = ({"w": jnp.diag(jnp.array(d))} for d in ([1.0, 1.0], [3.0, 1.0], [1.0, 5.0]))
        >>> both = task_arithmetic(base, [one, two], weights=[1, 0.5])
        >>> both["w"].tolist()
        [[3.0, 0.0], [0.0, 3.0]]
        >>> print(fidelity(lambda p, x: x @ p["w"], base, both, [jnp.eye(2)]))
        KL 0.273 nats, flips 0 of 2 (0%), error max 2 mean 1, bytes 16 -> 16

    Reference: Ilharco et al. 2022, arXiv:2212.04089. Deviation: a weight for each task, where the paper has
    one for all.
    """
    return moved("task_arithmetic", base, trees, weights, LINEAR)
