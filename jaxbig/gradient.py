"""The gradient of an objective through a technique, and ways to get it: from chunks of a batch, sharpness-aware, with a
penalty on what is trained.

A way is a function from gradient to gradient, so ways compose as optax's transformations do; `jaxbig.step` applies them
in order, the first one innermost.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from jaxbig.errors import UserError
from jaxbig.lift import lift
from jaxbig.objective.base import Metrics, Objective
from jaxbig.transform import Split, Transform

PyTree = Any
Gradient = Callable[[Split, PyTree, Any, jax.Array], tuple[PyTree, Metrics, PyTree]]


def gradient_fn(objective: Objective, transform: Transform, axis_name: str | None = None) -> Gradient:
    """∇_train objective(apply(split)), with the objective lifted so that parameters may be Weights.

    Args:
        objective: see `jaxbig.objective`.
        transform: the technique.
        axis_name: axis of a `pmap` over which gradients are averaged, weighted by the count of the metric ``loss``.
            ``vars`` (BatchNorm) are averaged without weights, and each device draws its own dropout.

    Returns:
        function (split, vars, batch, key) -> (gradient like ``split.train``, metrics, vars).

    Example:
        >>> import flax.linen as nn
        >>> from jaxbig.objective import classify
        >>> from jaxbig.tune.full import full
        >>> split = full().init(jax.random.key(0), {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, {})
        >>> batch = {"image": jnp.ones((4, 2)), "label": jnp.zeros(4, jnp.int32)}
        >>> grads, metrics, _ = gradient_fn(classify(nn.Dense(3)), full())(split, {}, batch, jax.random.key(0))
        >>> [round(float(g), 3) for g in grads["bias"]]
        [-0.667, 0.333, 0.333]
    """

    def gradient(split: Split, variables: PyTree, batch: Any, key: jax.Array):
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        apply_key, loss_key = jax.random.split(key)

        def loss(train):
            whole = split._replace(train=train)
            params = transform.apply(whole, apply_key)
            value, aux = lift(transform.wrap(whole, objective))(params, variables, batch, loss_key)
            return value, (aux.metrics, aux.vars)

        grads, (metrics, after) = jax.grad(loss, has_aux=True)(split.train)
        return (grads, metrics, after) if axis_name is None else _reduce(grads, metrics, after, axis_name)

    return gradient


def _reduce(grads: PyTree, metrics: Metrics, variables: PyTree, axis_name: str) -> tuple[PyTree, Metrics, PyTree]:
    count = metrics["loss"][1]
    total = jax.lax.psum(count, axis_name)
    share = count / jnp.where(total == 0, 1, total)
    grads = jax.lax.psum(jax.tree.map(lambda grad: (grad * share).astype(grad.dtype), grads), axis_name)
    return grads, jax.lax.psum(metrics, axis_name), jax.lax.pmean(variables, axis_name)


@dataclasses.dataclass(frozen=True)
class Accumulate:
    """Gradient of a batch from its chunks, one after the other: g = Σ_i n_i g_i / Σ_i n_i, n_i the chunk's loss count.

    It is the whole batch's gradient, also where masks leave chunks of different sizes, for every objective whose loss
    is the mean of its metric ``loss``; BatchNorm sees each chunk for itself. Memory of activations: that of one chunk,
    and one float32 copy of the gradient. Rows i, i + chunks, i + 2 chunks, ... of the batch make up chunk i, so that a
    batch that is split over devices stays where it is.

    Args:
        chunks: how many; they have to divide the batch.

    Example:
        >>> import flax.linen as nn
        >>> from jaxbig.objective import classify
        >>> from jaxbig.tune.full import full
        >>> split = full().init(jax.random.key(0), {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, {})
        >>> batch = {"image": jnp.ones((4, 2)), "label": jnp.array([0, 1, 2, 2]), "mask": jnp.array([1, 1, 0, 1])}
        >>> whole = gradient_fn(classify(nn.Dense(3)), full())
        >>> a, b = (g(split, {}, batch, jax.random.key(0))[0]["bias"] for g in (whole, Accumulate(2)(whole)))
        >>> bool(jnp.allclose(a, b, atol=1e-7))
        True
    """

    chunks: int

    def __call__(self, gradient: Gradient) -> Gradient:
        if self.chunks < 1:
            raise UserError(f"Accumulate: chunks={self.chunks}; use at least 1")

        def accumulated(split: Split, variables: PyTree, batch: Any, key: jax.Array):
            sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
            if any(size % self.chunks for size in sizes):
                raise UserError(
                    f"Accumulate: chunks={self.chunks} do not divide a batch of {min(sizes)}; choose others"
                )
            parts = jax.tree.map(
                lambda leaf: rearrange(leaf, "(b chunks) ... -> chunks b ...", chunks=self.chunks), batch
            )

            def one(carry, numbered):
                variables, total, sums = carry
                i, part = numbered
                grads, metrics, variables = gradient(split, variables, part, jax.random.fold_in(key, i))
                count = metrics["loss"][1]
                total = jax.tree.map(lambda a, grad: a + grad.astype(a.dtype) * count.astype(a.dtype), total, grads)
                return (variables, total, jax.tree.map(jnp.add, sums, metrics)), None

            first = jax.tree.map(lambda leaf: leaf[0], parts)
            _, metrics, _ = jax.eval_shape(gradient, split, variables, first, key)
            zeros = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), split.train
            )
            start = (variables, zeros, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics))
            (variables, total, metrics), _ = jax.lax.scan(one, start, (jnp.arange(self.chunks), parts))
            count = metrics["loss"][1]
            scale = 1 / jnp.where(count == 0, 1, count)
            grads = jax.tree.map(lambda a, leaf: (a * scale.astype(a.dtype)).astype(leaf.dtype), total, split.train)
            return grads, metrics, variables

        return accumulated


@dataclasses.dataclass(frozen=True)
class SAM:
    """Sharpness-aware minimisation: the gradient at θ + ρ g / ‖g‖, g the gradient at θ. Costs two gradients a step.

    Metrics and ``vars`` are those at θ. Both gradients draw the same dropout.

    Args:
        radius: ρ, the norm of the excursion over all that is trained.

    Example:
        >>> import flax.linen as nn
        >>> from jaxbig.objective import classify
        >>> from jaxbig.tune.full import full
        >>> split = full().init(jax.random.key(0), {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, {})
        >>> batch = {"image": jnp.ones((4, 2)), "label": jnp.zeros(4, jnp.int32)}
        >>> grads, _, _ = SAM(0.5)(gradient_fn(classify(nn.Dense(3)), full()))(split, {}, batch, jax.random.key(0))
        >>> round(float(grads["bias"][0]), 2)  # uphill the loss is steeper
        -0.85

    Reference:
        Foret, Kleiner, Mobahi, Neyshabur (2020), "Sharpness-aware minimization for efficiently improving
        generalization", arXiv:2010.01412, algorithm 1 with p = 2.
    """

    radius: float = 0.05

    def __call__(self, gradient: Gradient) -> Gradient:
        def aware(split: Split, variables: PyTree, batch: Any, key: jax.Array):
            grads, metrics, after = gradient(split, variables, batch, key)
            scale = self.radius / (optax.tree.norm(grads) + 1e-12)
            uphill = jax.tree.map(lambda leaf, grad: leaf + (scale * grad).astype(leaf.dtype), split.train, grads)
            return gradient(split._replace(train=uphill), variables, batch, key)[0], metrics, after

        return aware


@dataclasses.dataclass(frozen=True)
class Penalty:
    """A term of the loss that depends on what is trained alone: g + weight * ∇_train function(train).

    Metrics are those of the objective, without it.

    Args:
        function: ``train -> scalar``, such as `jaxbig.tune.adalora.orthogonality`; a chain's train has an entry for
            each of its links.
        weight: of the term.

    Example:
        >>> import flax.linen as nn
        >>> from jaxbig.objective import classify
        >>> from jaxbig.tune.full import full
        >>> split = full().init(jax.random.key(0), {"kernel": jnp.zeros((2, 3)), "bias": jnp.ones(3)}, {})
        >>> batch = {"image": jnp.ones((4, 2)), "label": jnp.zeros(4, jnp.int32)}
        >>> short = Penalty(lambda train: (train["bias"] ** 2).sum(), 0.5)
        >>> grads, _, _ = short(gradient_fn(classify(nn.Dense(3)), full()))(split, {}, batch, jax.random.key(0))
        >>> [round(float(g), 3) for g in grads["bias"]]
        [0.333, 1.333, 1.333]
    """

    function: Callable[[PyTree], jax.Array]
    weight: float = 1.0

    def __call__(self, gradient: Gradient) -> Gradient:
        def penalised(split: Split, variables: PyTree, batch: Any, key: jax.Array):
            grads, metrics, after = gradient(split, variables, batch, key)
            more = jax.grad(lambda train: self.weight * self.function(train))(split.train)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, more), metrics, after

        return penalised
