"""One training step, pure; it knows no technique and no model.

Its state is what may be donated: what is trained, the technique's own arrays, ``vars``, the optimiser's state. The
frozen base, ``Split.params``, is an argument of its own and is never donated.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxbig.errors import UserError
from jaxbig.gradient import Gradient, gradient_fn
from jaxbig.lift import lift
from jaxbig.objective.base import Aux, Metrics, Objective
from jaxbig.transform import Split, Transform
from jaxbig.tree import map_paths, paths

PyTree = Any


class TrainState(NamedTuple):
    """All that a step changes.

    Attributes:
        step: int32 scalar, number of steps done.
        split: the factorisation, with None in place of the frozen `params`.
        vars: what is neither trained nor frozen.
        opt_state: the optimiser's.
        key: typed PRNG key of the run; step i uses ``fold_in(key, i)``.
    """

    step: jax.Array
    split: Split
    vars: PyTree
    opt_state: PyTree
    key: jax.Array


Ways = Sequence[Callable[[Gradient], Gradient]]
Step = Callable[[PyTree, TrainState, Any], tuple[TrainState, Metrics]]


def init_state(
    split: Split, optimizer: optax.GradientTransformation, key: jax.Array, variables: PyTree = None
) -> tuple[PyTree, TrainState]:
    """The frozen base and the state of a run at step 0.

    Args:
        split: as `Transform.init` made it.
        optimizer: optax transformation.
        key: typed PRNG key.
        variables: the objective's ``vars``; None: {}.

    Returns:
        base, which is ``split.params`` itself, and the state, which shares no array with the arguments.
    """

    @jax.jit
    def start(split, variables, key):
        # Copied, because these arrays will be donated and the caller's must not be.
        split, variables, key = jax.tree.map(jnp.copy, (split, variables, key))
        return TrainState(jnp.zeros((), jnp.int32), split, variables, optimizer.init(split.train), key)

    return split.params, start(split._replace(params=None), {} if variables is None else variables, key)


def step_fn(
    objective: Objective,
    transform: Transform,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
    ways: Ways = (),
) -> Step:
    """The pure step, not compiled: g = ∇_train objective(apply(split)), train <- train + optimizer(g), then `update`.

    A `jax.vmap` over states (and batches) trains several seeds as one program.

    Args:
        objective: see `jaxbig.objective`; it is lifted, so parameters may be Weights.
        transform: the technique.
        optimizer: optax transformation over ``split.train``.
        axis_name: axis of a `pmap`, see `jaxbig.gradient.gradient_fn`.
        ways: how the gradient is had, the first one innermost: `jaxbig.gradient.Accumulate`, `jaxbig.gradient.SAM`.

    Returns:
        function (base, state, batch) -> (state, metrics).

    Raises:
        UserError: while tracing, if the transform's `update` changes the frozen parameters.

    Example:
        >>> import flax.linen as nn
        >>> from jaxbig.objective import classify
        >>> from jaxbig.tune.full import full
        >>> params = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
        >>> split = full().init(jax.random.key(0), params, {})
        >>> base, state = init_state(split, optax.sgd(0.1), jax.random.key(0))
        >>> batch = {"image": jnp.ones((4, 2)), "label": jnp.zeros(4, jnp.int32)}
        >>> state, metrics = step_fn(classify(nn.Dense(3)), full(), optax.sgd(0.1))(base, state, batch)
        >>> int(state.step), float(metrics["loss"][1])
        (1, 4.0)
    """
    gradient = gradient_fn(objective, transform, axis_name)
    for way in ways:
        gradient = way(gradient)

    def step(base: PyTree, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        split = state.split._replace(params=base)
        grads, metrics, variables = gradient(split, state.vars, batch, jax.random.fold_in(state.key, state.step))
        updates, opt_state = optimizer.update(grads, state.opt_state, split.train)
        split = split._replace(train=optax.apply_updates(split.train, updates))
        split = transform.update(split, grads, state.step)
        opt_state = reset_slots(opt_state, split.train, transform.reset(split, state.step))
        if any(new is not old for new, old in zip(jax.tree.leaves(split.params), jax.tree.leaves(base), strict=True)):
            raise UserError(
                f"{transform.name}: update() changes the frozen parameters; keep what changes in train or state"
            )
        return TrainState(state.step + 1, split._replace(params=None), variables, opt_state, state.key), metrics

    return step


def reset_slots(opt_state: PyTree, train: PyTree, masks: PyTree) -> PyTree:
    """The optimiser's state with the entries of some trained leaves at zero, as a fresh one would have them.

    Args:
        opt_state: of any optax transformation. A leaf in it is a slot of a trained leaf if its path ends in that leaf's
            path and its shape is the same; everything else (counts) stays.
        train: what is trained.
        masks: a part of `train`'s tree, booleans that broadcast to its leaves: True starts again.

    Returns:
        the state, of equal structure.

    Raises:
        UserError: `masks` names no trained leaf.

    Example:
        >>> train = {"w": jnp.ones(2)}
        >>> _, state = optax.trace(0.9).update({"w": jnp.ones(2)}, optax.trace(0.9).init(train))
        >>> reset_slots(state, train, {"w": jnp.array([True, False])}).trace["w"].tolist()
        [0.0, 1.0]
    """
    wanted, leaves = paths(masks), paths(train)
    if not wanted:
        return opt_state
    for path in wanted:
        if path not in leaves:
            raise UserError(f"reset: {path!r} is no trained leaf; there are {', '.join(leaves) or 'none'}")

    def reset(path: str, slot: Any) -> Any:
        owners = [name for name in wanted if f"/{path}".endswith(f"/{name}") and slot.shape == leaves[name].shape]
        return jnp.where(wanted[max(owners, key=len)], jnp.zeros_like(slot), slot) if owners else slot

    return map_paths(reset, opt_state)


def make_step(
    objective: Objective, transform: Transform, optimizer: optax.GradientTransformation, ways: Ways = ()
) -> Step:
    """`step_fn`, compiled; the state is donated, so go on with the one that it returns."""
    return jax.jit(step_fn(objective, transform, optimizer, ways=ways), donate_argnums=1)


def measure_fn(
    objective: Objective, transform: Transform, outputs: bool = False
) -> Callable[[PyTree, TrainState, Any], Aux]:
    """The pure evaluation of a state, without any random key: what `jaxbig.evaluate.collect` asks of each batch.

    Args:
        objective: in evaluation mode.
        transform: the technique.
        outputs: whether the objective's outputs are wanted; they are not computed otherwise.

    Returns:
        function (base, state, batch) -> Aux, its ``vars`` {}.
    """

    def measure(base: PyTree, state: TrainState, batch: Any) -> Aux:
        split = state.split._replace(params=base)
        params = transform.apply(split, None)
        aux = lift(transform.wrap(split, objective))(params, state.vars, batch, None)[1]
        return Aux(aux.metrics, {}, aux.outputs if outputs else None)

    return measure


def metrics_fn(objective: Objective, transform: Transform) -> Callable[[PyTree, TrainState, Any], Metrics]:
    """`measure_fn`, the metrics alone: function (base, state, batch) -> metrics."""
    measure = measure_fn(objective, transform)
    return lambda base, state, batch: measure(base, state, batch).metrics
