"""Regression: squared, absolute and Huber loss.

Legend of the shape suffixes: B batch, D outputs.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxbig.errors import UserError
from jaxbig.objective.base import (
    Aux,
    Inputs,
    Metrics,
    Objective,
    collected,
    example_weights,
    forward,
    picked,
    weighted_mean,
)

Loss = Literal["mse", "mae", "huber"]


def regression_metrics(
    predictions_BD: jax.Array, labels_BD: jax.Array, weights_B: jax.Array, center: float = 0.0
) -> Metrics:
    """``mse``, ``mae`` and the sums of ``r2`` of a batch as (weighted sum, sum of weights).

    Args:
        predictions_BD, labels_BD: [B, D]; computed in float32.
        weights_B: how much each example counts, float32 [B].
        center: see `regress`.

    Returns:
        name -> (sum, count). The sum of ``r2`` is [3, D]: Σ w (y - center), Σ w (y - center)², Σ w (y - ŷ)².

    Example:
        >>> metrics = regression_metrics(jnp.array([[1.0], [4.0]]), jnp.array([[1.0], [2.0]]), jnp.ones(2))
        >>> float(metrics["mse"][0]), float(metrics["mae"][0]), metrics["r2"][0].tolist()
        (4.0, 2.0, [[3.0], [5.0], [4.0]])
    """
    labels_BD = labels_BD.astype(jnp.float32)
    error_BD, moved_BD = predictions_BD.astype(jnp.float32) - labels_BD, labels_BD - center
    # Products and sums, because accelerators multiply matrices in fewer bits than float32 has.
    sums = jnp.stack([(weights_B[:, None] * part).sum(axis=0) for part in (moved_BD, moved_BD**2, error_BD**2)])
    count = weights_B.sum()
    return {
        "mse": ((weights_B * (error_BD**2).mean(axis=-1)).sum(), count),
        "mae": ((weights_B * jnp.abs(error_BD).mean(axis=-1)).sum(), count),
        "r2": (sums, count),
    }


def regress(
    module: nn.Module,
    *,
    loss: Loss = "mse",
    delta: float = 1.0,
    center: float = 0.0,
    train: bool = True,
    inputs: Inputs = "image",
    labels: str = "label",
) -> Objective:
    """Objective of regression: Σ_b w_b mean_d ρ(ŷ_bd - y_bd) / Σ_b w_b, w = mask * weight.

    ρ(e) = e² ("mse"), abs(e) ("mae"), or Huber's: e² / 2 up to abs(e) = δ and δ (abs(e) - δ / 2) beyond.

    Args:
        module: linen module from inputs to predictions [B], [B, 1] or [B, D]; see `forward` for its flags.
        loss: ρ.
        delta: δ, above 0, in the targets' unit.
        center: any number near the targets' mean. It changes no metric, but float32 sums of squares far from zero lose
            the variance: give it where the mean is over a hundred times the standard deviation.
        train: dropout on, collections updated; False for evaluation.
        inputs: what the module is called with: a name in the batch, or several, see `jaxbig.objective.base.picked`.
        labels: name in the batch. Targets are [B] or [B, D]. ``mask`` and ``weight`` [B] count where the batch
            has them.

    Returns:
        objective with the metrics ``loss``, ``mse``, ``mae`` and ``r2`` (the mean over the D outputs of 1 - Σ w (y -
        ŷ)² / Σ w (y - ȳ)²; nan where targets do not vary), and in evaluation the outputs ``prediction`` and ``label``.

    Raises:
        UserError: an unknown loss, or δ not above 0; while tracing, shapes that do not fit.

    Example:
        >>> params = {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)}
        >>> batch = {"image": jnp.ones((4, 2)), "label": jnp.array([0.0, 1.0, 2.0, 3.0])}
        >>> loss, aux = regress(nn.Dense(1))(params, {}, batch, None)
        >>> float(loss), sorted(aux.metrics)
        (1.5, ['loss', 'mae', 'mse', 'r2'])

    Reference:
        Huber (1964), "Robust estimation of a location parameter", Annals of Mathematical Statistics 35.
    """
    if loss not in ("mse", "mae", "huber"):
        raise UserError(f"regress: loss={loss!r}; use 'mse', 'mae' or 'huber'")
    if delta <= 0:
        raise UserError(f"regress: delta={delta}; use a number above 0")
    rho: dict[str, Callable[[jax.Array], jax.Array]] = {
        "mse": jnp.square,
        "mae": jnp.abs,
        "huber": lambda error: optax.huber_loss(error, delta=delta),
    }

    def objective(params, variables, batch, key):
        output, variables = forward(module, params, variables, picked(batch, inputs), key, train)
        predictions_BD, labels_BD = _columns(output, jnp.asarray(batch[labels]))
        weights_B = example_weights(batch, output.shape[0])
        error_BD = predictions_BD.astype(jnp.float32) - labels_BD.astype(jnp.float32)
        metrics = regression_metrics(predictions_BD, labels_BD, weights_B, center)
        metrics["loss"] = ((weights_B * rho[loss](error_BD).mean(axis=-1)).sum(), metrics["mse"][1])
        shape = jnp.shape(batch[labels])
        outputs = collected(batch, train, prediction=predictions_BD.reshape(shape), label=labels_BD.reshape(shape))
        return weighted_mean(metrics["loss"]), Aux(metrics, variables, outputs)

    return objective


def _columns(output: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as [B, D]. [B] and [B, 1] are one thing: subtracted as they are, they would give [B, B]."""
    output, labels = (array[:, None] if array.ndim == 1 else array for array in (output, labels))
    if output.shape != labels.shape or output.ndim != 2:
        raise UserError(
            f"regress: predictions {output.shape} and targets {labels.shape}; both have to be [B] or [B, D]"
        )
    return output, labels
