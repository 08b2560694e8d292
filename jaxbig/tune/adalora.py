"""AdaLoRA: triplets like those of a singular value decomposition, of which the less important are taken away."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UsageError
from jaxbig.lowrank import LowRank, check_rank
from jaxbig.site import sites
from jaxbig.transform import Split, Transform, key_for, technique
from jaxbig.tree import PyTree, paths, replace
from jaxbig.weight import wide


@technique
def adalora(
    steps: int,
    rank: int = 12,
    target: int = 8,
    alpha: float | None = None,
    where: Any = None,
    t_init: int = 0,
    t_final: int = 0,
    delta_t: int = 1,
    beta1: float = 0.85,
    beta2: float = 0.85,
) -> Transform:
    """Trains triplets (p, e, q) of each weight, ``W' = W + s P diag(e) Q``, and zeroes the least important e.

    ``I = mean(U(p)) + U(e) + mean(U(q))`` is a triplet's importance, U(x) the product of the smoothed sensitivity
    ``S <- beta1 S + (1 - beta1) |x dL/dx|`` and the smoothed uncertainty ``beta2 U + (1 - beta2) | |x dL/dx| - S |``.
    Over all weights together the `budget` most important ones stay; the others' e is 0 until the next time.

    Args:
        steps: of the whole training.
        rank: triplets of each matrix at first.
        target: mean number of them at the end.
        alpha: the numerator of the scale ``s = alpha / rank``; None: alpha = rank.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.
        t_init: until this step all triplets stay. From then on the budget falls with the cube of the time that is left.
        t_final: for so many steps at the end the choice is final.
        delta_t: steps between two choices.
        beta1, beta2: smoothing of the sensitivity and of the uncertainty.

    Returns:
        a Transform; ``train[path] = {"a": [*stack, *in, r], "e": [*stack, r], "b": [*stack, r, *out]}``, float32
        (float64 over a float64 base): P, e, Q. `state` holds both averages of each, and ``kept[path]`` [*stack, r], the
        triplets that the last choice kept.

    Raises:
        UsageError: a `rank` or `target` below 1, or a target above the rank; a schedule that leaves no time to choose
            in, a `delta_t` below 1; a selected leaf that is neither multiplied nor looked up.

    Init: e = 0, P and Q normal of deviation 0.02: the model is unchanged, bit for bit (up to the sign of zeros).

    Cost: ``r (I + O + 1)`` parameters a layer and twice as many numbers of state; forward LoRA's FLOPs; each update
    sorts all triplets' importances.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> method = adalora(steps=10, rank=3, target=1, where="w")
        >>> split = method.init(jax.random.key(0), params, uses)
        >>> split = split._replace(train=jax.tree.map(jnp.ones_like, split.train))
        >>> grads = {"w": {"a": jnp.ones((4, 3)), "e": jnp.array([2.0, 1.0, 3.0]), "b": jnp.ones((3, 3))}}
        >>> method.update(split, grads, 9).train["w"]["e"].tolist()
        [0.0, 0.0, 1.0]

    P and Q are to be orthogonal: a task with ``ways=(Penalty(orthogonality, 0.5),)`` adds that to the loss, see
    `jaxbig.gradient.Penalty`.

    Reference: Zhang et al. 2023, arXiv:2303.10512. Deviations, PEFT's too: the averages start at zero; a triplet that
    was zeroed keeps its gradient and may come back until the choice is final; the optimiser's moments of a zeroed e
    stay; s is ``alpha / (rank + 1e-5)``. That rank is a number here, where PEFT lets the optimiser move it. The layers
    of a stack are told apart, each with triplets of its own.
    """
    check_rank("adalora", rank)
    check_rank("adalora: target", target)
    last = steps - t_final
    if target > rank:
        raise UsageError(f"adalora: target={target} is above rank={rank}; triplets are only taken away")
    if t_init < 0 or t_final < 0 or t_init >= last or delta_t < 1:
        raise UsageError(
            f"adalora: t_init={t_init}, t_final={t_final}, delta_t={delta_t} leave no step of {steps} to choose in; "
            "t_init + t_final has to be below steps, and delta_t at least 1"
        )

    def init(key, params, uses):
        train, weights = {}, {}
        for path, site in sites("adalora", where, params, uses).items():
            down, up = jax.random.split(key_for(key, path))
            normal = lambda key, *shape: 0.02 * jax.random.normal(key, (*site.stack, *shape), site.dtype)  # noqa: B023, E731
            train[path] = {"a": normal(down, *site.inputs, rank), "b": normal(up, rank, *site.outputs)}
            train[path]["e"] = jnp.zeros((*site.stack, rank), site.dtype)
            weights[path] = LowRank(None, None, None, None, None, None, site.in_axes, site.out_axes)
        kept = {path: jnp.ones(parts["e"].shape, bool) for path, parts in train.items()}
        nothing = [jax.tree.map(jnp.zeros_like, train) for _ in range(2)]
        state = {"weights": weights, "kept": kept, "sensitivity": nothing[0], "uncertainty": nothing[1]}
        return Split(params, train, state)

    def apply(split, key=None):
        bases = paths(split.params)

        def adapted(path, parts):
            dtype = wide(parts["a"].dtype)
            a, e = parts["a"].astype(dtype), parts["e"].astype(dtype)
            inputs = (1,) * (a.ndim - e.ndim)
            scale = jnp.asarray((rank if alpha is None else alpha) / (rank + 1e-5), dtype)
            along = a * e.reshape(*e.shape[:-1], *inputs, rank)
            low = split.state["weights"][path]
            return low.replace(base=bases.get(path), a=along, b=parts["b"], scale=scale)

        return replace(split.params, {path: adapted(path, parts) for path, parts in split.train.items()})

    def update(split, grads, step):
        state, counts = split.state, {path: parts["e"].size for path, parts in split.train.items()}
        sensitivity, uncertainty = smoothed(split, grads, beta1, beta2, step < last)
        total = sum(counts.values())
        budgets = jnp.asarray(schedule(total, total // rank * target, t_init, last, delta_t), jnp.int32)
        budget = budgets[jnp.minimum(step, last) // delta_t]
        budget = jnp.where(step == last, total // rank * target, budget)
        chooses = ((step > t_init) & (step < last) & (step % delta_t == 0)) | (step == last)
        chosen = most_important(importance(sensitivity, uncertainty), budget)
        kept = jax.tree.map(lambda new, old: jnp.where(chooses, new, old), chosen, state["kept"])
        gone = {path: (chooses | (step > last)) & ~mask for path, mask in kept.items()}
        train = {
            path: {**parts, "e": jnp.where(gone[path], jnp.zeros_like(parts["e"]), parts["e"])}
            for path, parts in split.train.items()
        }
        ended = lambda average: jnp.where(step == last, jnp.zeros_like(average), average)  # noqa: E731
        sensitivity, uncertainty = jax.tree.map(ended, (sensitivity, uncertainty))
        state = {**state, "kept": kept, "sensitivity": sensitivity, "uncertainty": uncertainty}
        return Split(split.params, train, state)

    return Transform("adalora", init, apply, update)


def schedule(total: int, target: int, t_init: int, last: int, delta_t: int) -> list[int]:
    """The number of triplets that stay at steps 0, delta_t, 2 delta_t, ... up to `last`.

    Example:
        >>> schedule(total=24, target=8, t_init=0, last=8, delta_t=2)
        [24, 14, 10, 8, 8]
    """
    # In Python's floats: float32 would round to another whole number here and there.
    left = lambda step: 1 - (step - t_init) / (last - t_init)  # noqa: E731
    return [
        total if step <= t_init else int((total - target) * left(step) ** 3 + target)
        for step in range(0, last + 1, delta_t)
    ]


def smoothed(split: Split, grads: PyTree, beta1: Any, beta2: Any, counts: Any) -> tuple[PyTree, PyTree]:
    """The averages of sensitivity and uncertainty with this step's in them, where it counts."""
    now = jax.tree.map(lambda leaf, grad: jnp.abs(leaf * grad), split.train, grads)
    mix = lambda beta: lambda old, new: jnp.where(counts, beta * old + (1 - beta) * new, old).astype(old.dtype)  # noqa: E731
    sensitivity = jax.tree.map(mix(beta1), split.state["sensitivity"], now)
    apart = jax.tree.map(lambda new, mean: jnp.abs(new - mean), now, sensitivity)
    return sensitivity, jax.tree.map(mix(beta2), split.state["uncertainty"], apart)


def importance(sensitivity: PyTree, uncertainty: PyTree) -> dict[str, jax.Array]:
    """A number for each triplet, [*stack, r]."""
    score = jax.tree.map(jnp.multiply, sensitivity, uncertainty)
    inputs = lambda parts: tuple(range(parts["e"].ndim - 1, parts["a"].ndim - 1))  # noqa: E731
    outputs = lambda parts: tuple(range(parts["e"].ndim, parts["b"].ndim))  # noqa: E731
    return {
        path: parts["e"] + parts["a"].mean(inputs(parts)) + parts["b"].mean(outputs(parts))
        for path, parts in score.items()
    }


def most_important(scores: dict[str, jax.Array], budget: jax.Array) -> dict[str, jax.Array]:
    """True for the `budget` largest of all; equal ones at the border are all False."""
    ordered = jnp.sort(jnp.concatenate([score.ravel() for score in scores.values()]))
    away = ordered.size - budget
    border = jnp.where(away > 0, ordered[jnp.maximum(away - 1, 0)], -jnp.inf)
    return {path: score > border for path, score in scores.items()}


def orthogonality(train: PyTree) -> jax.Array:
    """How far P and Q are from orthogonal: the mean of ``|P^T P - 1|`` and ``|Q Q^T - 1|`` (Frobenius) of all.

    Args:
        train: ``split.train`` of `adalora`; of a chain, its entry.

    Returns:
        a scalar, whose weight in the paper is 0.1 to 0.5.

    Example:
        >>> eye = jnp.eye(4, 2)
        >>> round(float(orthogonality({"w": {"a": eye, "e": jnp.ones(2), "b": jnp.zeros((2, 5))}})), 4)
        0.7071
    """
    norms = []
    for parts in train.values():
        *stack, rank = parts["e"].shape
        p, q = parts["a"].reshape(*stack, -1, rank), parts["b"].reshape(*stack, rank, -1)
        for gram in (p.mT @ p, q @ q.mT):
            square = ((gram - jnp.eye(rank, dtype=gram.dtype)) ** 2).sum((-2, -1))
            # The root has no slope at 0: none is asked for there.
            root = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
            norms.append(root.reshape(math.prod(stack)))
    return jnp.concatenate(norms).mean()
