"""Averages of what is trained, kept in the optimiser's state: exponential moving, and uniform (Polyak, SWA)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxbig.errors import UsageError
from jaxbig.schedule import check_name
from jaxbig.tree import PyTree, paths, replace


class AverageState(NamedTuple):
    """Attributes: step: int32, updates seen; count: int32, those that were averaged; mean: the average."""

    step: jax.Array
    count: jax.Array
    mean: PyTree


@dataclasses.dataclass(frozen=True)
class Average:
    """Options of an average; `build` makes the optax transformation, which is the last link of a chain.

    With θ_n the parameters *after* the n-th update that counts, n = 0, 1, ...,

        mean <- (1 - w_n) * mean + w_n * θ_n,    w_0 = 1

    ======== ============================ =====================================================================
    rule     w_n for n > 0
    ======== ============================ =====================================================================
    ema      1 - decay                    the first parameters weigh as much as 1 / (1 - decay) later ones
    warmup   1 - min(decay, (1+n)/(10+n)) forgets the first parameters quickly
    debiased (1-decay) / (1-decay^(n+1))  Adam's bias correction: the weights are those of an endless run, rescaled
    uniform  1 / (n + 1)                  Polyak's average, stochastic weight averaging; `decay` is not used
    ======== ============================ =====================================================================

    Attributes:
        decay: of the mean, in [0, 1].
        rule: one of the above.
        every: only every so many updates count.
        start: number of updates before the first that may count; until then the mean is the first parameters.

    Example:
        >>> optimizer = optax.chain(optax.sgd(1.0), Average(rule="uniform").build())
        >>> train, state = {"w": jnp.zeros(())}, optimizer.init({"w": jnp.zeros(())})
        >>> for _ in range(3):
        ...     updates, state = optimizer.update({"w": jnp.float32(-1)}, state, train)
        ...     train = optax.apply_updates(train, updates)
        >>> float(train["w"]), float(averaged(state, train)["w"])
        (3.0, 2.0)

    Cost: a float32 copy of what is trained (float64 where that is), and one multiply-add for each number and step.

    Reference:
        Polyak and Juditsky (1992), "Acceleration of stochastic approximation by averaging"; Izmailov et al. (2018),
        arXiv:1803.05407, SWA; "ema" and "uniform" are those of torch.optim.swa_utils, "warmup" that of TensorFlow's
        ExponentialMovingAverage, which starts from the first parameters with w_0 = 0.9 where it starts with 1 here.
    """

    decay: float = 0.999
    rule: str = "ema"
    every: int = 1
    start: int = 0

    def build(self) -> optax.GradientTransformationExtraArgs:
        """The optax transformation; it hands updates on as they are.

        Raises:
            UsageError: an unknown rule, ``every < 1``, or a decay outside [0, 1].
        """
        check_name("average", self.rule, RULES)
        if self.every < 1 or self.start < 0:
            raise UsageError(f"average: every={self.every}, start={self.start}; use every >= 1 and start >= 0")
        if isinstance(self.decay, int | float) and not 0 <= self.decay <= 1:
            raise UsageError(f"average: decay={self.decay}; it is a share of the mean, from 0 to 1")

        def init(params):
            zero = jnp.zeros((), jnp.int32)
            return AverageState(zero, zero, jax.tree.map(lambda leaf: jnp.array(leaf, _wide(leaf), copy=True), params))

        def update(updates, state, params=None, **extra):
            if params is None:
                raise UsageError("an average needs the parameters; call update(grads, state, params)")
            counts = (state.step >= self.start) & ((state.step - self.start) % self.every == 0)
            share = jnp.where(state.count == 0, 1.0, RULES[self.rule](self.decay, state.count.astype(jnp.float32)))

            def mixed(mean, leaf):
                w = share.astype(mean.dtype)
                # A selection, because 0 * mean is not nothing where the mean has overflowed.
                old = jnp.where(state.count == 0, 0, (1 - w) * mean)
                return jnp.where(counts, old + w * leaf.astype(mean.dtype), mean)

            mean = jax.tree.map(mixed, state.mean, optax.apply_updates(params, updates))
            return updates, AverageState(state.step + 1, state.count + counts, mean)

        return optax.GradientTransformationExtraArgs(init, update)


RULES = {
    "ema": lambda decay, n: 1 - decay,
    "warmup": lambda decay, n: 1 - jnp.minimum(decay, (1 + n) / (10 + n)),
    # decay = 1 is the limit, the uniform average.
    "debiased": lambda decay, n: jnp.where(decay == 1, 1 / (n + 1), (1 - decay) / -jnp.expm1((n + 1) * jnp.log(decay))),
    "uniform": lambda decay, n: 1 / (n + 1),
}


def averaged(opt_state: PyTree, train: PyTree) -> PyTree:
    """What is trained, with the average that an optimiser's state holds in its place.

    Args:
        opt_state: the state of an optimiser that `Average` is a part of, however deep; a leading axis of seeds is fine.
        train: ``split.train`` as it is now; it is not changed.

    Returns:
        tree like `train`, of its dtypes. Leaves that the optimiser does not see (frozen ones) are those of `train`.

    Raises:
        UsageError: there is no average in the state, or more than one.

    Example:
        >>> averaged(optax.adam(1e-3).init({"w": jnp.ones(1)}), {"w": jnp.ones(1)})
        Traceback (most recent call last):
            ...
        jaxbig.errors.UsageError: averaged: this optimiser keeps no average; build it with Optimizer(ema=0.999), ...
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, AverageState))
    found = [node for node in leaves if isinstance(node, AverageState)]
    if not found:
        raise UsageError(
            "averaged: this optimiser keeps no average; build it with Optimizer(ema=0.999), or end its chain with "
            "Average().build()"
        )
    if len(found) > 1:
        raise UsageError(f"averaged: this optimiser keeps {len(found)} averages; give the part of its state with one")
    now = paths(train)
    means = {path: mean.astype(now[path].dtype) for path, mean in paths(found[0].mean).items()}
    return replace(train, means)


def view(state: Any) -> Any:
    """A trainer's state with the average in place of what is trained: for `jaxbig.job.Task`'s ``view``.

    Args:
        state: has ``split`` and ``opt_state``, as `jaxbig.step.TrainState`.

    Returns:
        the state; its ``vars`` stay. BatchNorm's statistics are then those of the weights themselves, which the average
        follows closely where it spans few steps or the rate ends near 0; else measure them anew at the end, with
        `jaxbig.batch_statistics.with_batch_statistics`.

    Raises:
        UsageError: as `averaged`.
    """
    return state._replace(split=state.split._replace(train=averaged(state.opt_state, state.split.train)))


def _wide(leaf: Any) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)
