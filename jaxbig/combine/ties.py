"""TIES: trimmed differences whose signs are elected."""

from collections.abc import Sequence

from jaxbig.combine.rule import Rule
from jaxbig.combine.trees import moved
from jaxbig.tree import PyTree


def ties(
    base: PyTree,
    trees: Sequence[PyTree],
    weights: Sequence[float] | None = None,
    density: float = 0.2,
    signs: str = "total",
) -> PyTree:
    """Trims, elects signs, and averages what agrees: ``theta = base + sum_{t in A} w_t v_t / |A|``.

    ``v_t`` is ``theta_t - base`` with all but its largest entries 0; of each entry the sign is ``sgn(sum_t v_t)``, and
    A are the tasks whose entry has it.

    Args:
        base: the tree that the others were tuned from; Weights are merged first.
        trees: the tuned trees, with the same paths and shapes.
        weights: one number for each (the paper's lambda, the same for all); None: 1.
        density: the share of each task's entries to keep, ranked over the whole tree.
        signs: elected by "total" (the paper's) or by "frequency".

    Returns:
        a tree of plain arrays of the base's structure; floating leaves are computed in float32 at least and rounded
        once, to the dtype that the trees' dtypes promote to; others are the base's.

    Raises:
        UsageError: no trees, other paths or shapes, weights that do not fit, a density that is no share, other `signs`.

    Cost: for each task 32 passes over all entries, which count the larger ones; as many bytes as all the trees hold,
    thrice over, while it runs; nothing at inference.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxbig.fidelity import fidelity
        >>> base, one, two = ({"w": jnp.diag(jnp.array(d))} for d in ([1.0, 1.0], [3.0, 1.5], [0.0, 5.0]))
        >>> both = ties(base, [one, two], density=0.5)
        >>> both["w"].tolist()
        [[3.0, 0.0], [0.0, 3.25]]
        >>> print(fidelity(lambda p, x: x @ p["w"], base, both, [jnp.eye(2)]))
        KL 0.302 nats, flips 0 of 2 (0%), error max 2.25 mean 1.06, bytes 16 -> 16

    Reference: Yadav et al. 2023, arXiv:2306.01708. Deviations: an entry whose votes are an exact draw goes to +, as in
    PEFT (the paper leaves it 0); a weight for each task, multiplied in after the election; entries as large as the
    smallest kept one all stay.
    """
    return moved("ties", base, trees, weights, Rule("largest", density, signs))
