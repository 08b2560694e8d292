"""DARE: differences dropped at random and scaled up."""

from collections.abc import Sequence
from typing import Any

from jaxbig.combine.rule import Rule
from jaxbig.combine.trees import moved
from jaxbig.tree import PyTree


def dare(
    key: Any,
    base: PyTree,
    trees: Sequence[PyTree],
    weights: Sequence[float] | None = None,
    density: float = 0.1,
    signs: str | None = None,
) -> PyTree:
    """Drops and rescales task vectors, then adds them: ``theta = base + sum_t w_t m_t (theta_t - base) / density``.

    Args:
        key: drives the masks ``m_t``, each entry 1 with probability `density`; each task and leaf has its own.
        base: the tree that the others were tuned from; Weights are merged first.
        trees: the tuned trees, with the same paths and shapes.
        weights: one number for each; None: 1.
        density: 1 - p, p the paper's drop rate; in (0, 1].
        signs: None: the sum above; "total" or "frequency": signs are elected and the tasks that agree averaged, as in
            `ties`.

    Returns:
        a tree of plain arrays of the base's structure; floating leaves are computed in float32 at least and rounded
        once, to the dtype that the trees' dtypes promote to; others are the base's.

    Raises:
        UsageError: no key, no trees, other paths or shapes, weights that do not fit, a density that is no share or 0,
            other `signs`.

    Cost: as many bytes as all the trees hold, thrice over, while it runs; nothing at inference.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxbig.fidelity import fidelity
        >>> base, tuned = {"w": jnp.eye(4)}, {"w": jnp.eye(4) + 0.25}
        >>> thinned = dare(jax.random.key(0), base, [tuned], density=0.5)
        >>> sorted(set((thinned["w"] - base["w"]).ravel().tolist()))
        [0.0, 0.5]
        >>> report = fidelity(lambda p, x: x @ p["w"], tuned, thinned, [jnp.eye(4)])
        >>> f"flips {report.flips} of {report.count}, error max {report.max_error}"
        'flips 0 of 4, error max 0.25'

    Reference: Yu et al. 2023, arXiv:2311.03099; with elected signs, its combination with Yadav et al. 2023 (TIES),
    arXiv:2306.01708. Deviations: a weight for each task; entries that fall out are independent, so their share is
    `density` in expectation.
    """
    return moved("dare", base, trees, weights, Rule("random", density, signs), key)
