"""Directions with options of their own: what Muon and Adafactor make of a gradient, before decay and learning rate."""

import dataclasses
import re
from typing import Any

import jax
import optax
from optax import contrib

from jaxbig.errors import UsageError
from jaxbig.tree import Where, match


@dataclasses.dataclass(frozen=True)
class Muon:
    """Options of "muon": momentum of matrices, orthogonalised by Newton-Schulz; all other leaves by AdamW.

        m <- β m + (1 - β) g,   direction = s * NewtonSchulz(m̂),   s = rms * sqrt(max(in, out))

    Attributes:
        where: leaves that are matrices; their last two axes are (in, out), the axes before them are stacked (layers).
            None: all leaves of two axes. Its authors leave embeddings and head to AdamW: then name the rest here.
        beta: β of the momentum.
        nesterov: Nesterov's form of it.
        rounds: of Newton-Schulz.
        rms: with 0.2 a step is about as long as one of AdamW, so one learning rate serves both; None: s =
            sqrt(max(1, out / in)), the original's.

    Example:
        >>> import jax.numpy as jnp
        >>> direction = Muon().build(optax.scale_by_adam())
        >>> train = {"kernel": jnp.eye(4), "bias": jnp.ones(4)}
        >>> updates, _ = direction.update(train, direction.init(train), train)
        >>> [f"{float(jnp.abs(leaf).max()):.2f}" for leaf in (updates["kernel"], updates["bias"])]
        ['0.31', '1.00']

    Cost: one moment a number; `rounds` times three products of the matrix with itself.

    Reference:
        Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks"; Liu et al. (2025),
        arXiv:2502.16982, for `rms`. It is optax.contrib's.
    """

    where: Where | None = None
    beta: float = 0.95
    nesterov: bool = True
    rounds: int = 5
    rms: float | None = 0.2

    def check(self, leaves: dict[str, Any]) -> None:
        """Raises a `UsageError` where `where` names nothing, or a leaf of fewer than two axes."""
        for path in [] if self.where is None else match(self.where, leaves):
            if leaves[path].ndim < 2:
                raise UsageError(f"muon: {path} has shape {leaves[path].shape}, no matrix; leave it out of where")

    def takes(self, path: str, leaf: Any) -> bool:
        """Whether a leaf is a matrix to this optimiser."""
        if self.where is None:
            return leaf.ndim == 2
        patterns = [self.where] if isinstance(self.where, str) else self.where
        return any(re.fullmatch(pattern, path) for pattern in patterns)

    def build(self, others: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optax transformation over dictionaries by path.

        Args:
            others: what the leaves that are no matrices get.
        """
        axes = contrib.MuonDimensionNumbers(-2, -1)

        def labels(leaves: dict[str, Any]) -> dict[str, str]:
            return {path: "matrix" if self.takes(path, leaf) else "other" for path, leaf in leaves.items()}

        def numbers(leaves):
            return jax.tree.map(lambda leaf: axes, leaves)

        matrices = optax.chain(
            contrib.scale_by_muon(
                beta=self.beta, nesterov=self.nesterov, ns_steps=self.rounds, weight_dimension_numbers=numbers
            ),
            optax.stateless(lambda updates, params: jax.tree.map(lambda u: self._length(u.shape) * u, updates)),
        )
        return optax.partition({"matrix": matrices, "other": others}, labels)

    def _length(self, shape: tuple[int, ...]) -> Any:
        inputs, outputs = shape[-2:]
        return max(1, outputs / inputs) ** 0.5 if self.rms is None else self.rms * max(inputs, outputs) ** 0.5


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Options of "adafactor": Adam's second moment of a matrix from the means of its rows and columns.

    Attributes:
        decay: c of the second moment's decay 1 - (t + 1)^-c.
        smallest: leaves whose second largest axis is shorter keep the whole second moment.
        clip: largest root mean square of a leaf's update; None: no clipping.
        relative: the step is in proportion to the leaf's own root mean square (1e-3 at least): `lr` is a share.

    Example:
        >>> import jax.numpy as jnp
        >>> state = Adafactor(smallest=32).build().init({"kernel": jnp.ones((64, 32))})
        >>> sum(leaf.size for leaf in jax.tree.leaves(state)) < 64 * 32 / 10
        True

    Reference:
        Shazeer and Stern (2018), arXiv:1804.04235; no first moment, as there. Deviation: weight decay is multiplied by
        the learning rate, as for every optimiser here; optax's own is not.
    """

    decay: float = 0.8
    smallest: int = 128
    clip: float | None = 1.0
    relative: bool = True

    def build(self) -> optax.GradientTransformation:
        """The optax transformation."""
        return optax.chain(
            optax.scale_by_factored_rms(decay_rate=self.decay, min_dim_size_to_factor=self.smallest),
            optax.identity() if self.clip is None else optax.clip_by_block_rms(self.clip),
            optax.scale_by_param_block_rms() if self.relative else optax.identity(),
        )
