"""Classification: softmax cross-entropy.

Legend of the shape suffixes: B batch, N classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxbig.errors import UserError
from jaxbig.objective.base import Aux, Metrics, Objective, example_weights, forward, weighted_mean


def cross_entropy(logits_BN: jax.Array, labels_B: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy of each example: -Σ_n q_n log softmax(z)_n, q = (1 - ε) p + ε / N, p = onehot(label).

    Args:
        logits_BN: [B, N]; computed in float32.
        labels_B: integers [B], or p itself, floats [B, N], as mixup makes them.
        smoothing: ε.

    Returns:
        float32 [B].

    Example:
        >>> print(cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).round(4))
        [1.3863]

    Reference:
        Szegedy et al. (2015), "Rethinking the Inception architecture", arXiv:1512.00567, section 7.
    """
    logits_BN = logits_BN.astype(jnp.float32)
    if jnp.ndim(labels_B) == 2:
        loss_B = optax.softmax_cross_entropy(logits_BN, labels_B)
    else:
        loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BN, labels_B)
    if not smoothing:
        return loss_B
    uniform_B = -jax.nn.log_softmax(logits_BN).mean(axis=-1)
    return (1 - smoothing) * loss_B + smoothing * uniform_B


def classification_metrics(
    logits_BN: jax.Array, labels_B: jax.Array, weights_B: jax.Array, smoothing: float = 0.0
) -> Metrics:
    """``loss`` and ``accuracy`` of a batch as (weighted sum, sum of weights).

    Args:
        logits_BN: [B, N].
        labels_B: integers [B], or floats [B, N]; then the likeliest class is the one that counts as right.
        weights_B: how much each example counts, float32 [B].
        smoothing: of the labels, for the loss.

    Returns:
        name -> (sum, count).

    Example:
        >>> logits, labels = jnp.array([[9.0, 0.0], [9.0, 0.0]]), jnp.array([0, 1])
        >>> total, count = classification_metrics(logits, labels, jnp.ones(2))["accuracy"]
        >>> float(total), float(count)
        (1.0, 2.0)
    """
    count = weights_B.sum()
    classes_B = labels_B.argmax(axis=-1) if jnp.ndim(labels_B) == 2 else labels_B
    correct_B = (logits_BN.argmax(axis=-1) == classes_B).astype(jnp.float32)
    loss_B = cross_entropy(logits_BN, labels_B, smoothing)
    return {"loss": ((weights_B * loss_B).sum(), count), "accuracy": ((weights_B * correct_B).sum(), count)}


def classify(
    module: nn.Module, *, train: bool = True, smoothing: float = 0.0, inputs: str = "image", labels: str = "label"
) -> Objective:
    """Objective of classification: loss = Σ_b w_b CE(module(x_b), y_b) / Σ_b w_b, w = mask * weight.

    Args:
        module: linen module from inputs to logits [B, N]; see `forward` for its flags and collections.
        train: dropout on, collections updated; False for evaluation.
        smoothing: label smoothing, from 0 to 1.
        inputs, labels: names in the batch. ``mask`` and ``weight`` [B] count where the batch has them.

    Returns:
        objective with the metrics ``loss`` and ``accuracy``.

    Raises:
        UserError: `smoothing` is not between 0 and 1.

    Example:
        >>> module = nn.Dense(3)
        >>> params = module.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
        >>> batch = {"image": jnp.zeros((4, 2)), "label": jnp.zeros(4, jnp.int32)}
        >>> loss, aux = classify(module)(params, {}, batch, None)
        >>> round(float(loss), 4), sorted(aux.metrics)
        (1.0986, ['accuracy', 'loss'])
    """
    if not 0 <= smoothing <= 1:
        raise UserError(f"classify: smoothing={smoothing}; use a number between 0 and 1")

    def objective(params, variables, batch, key):
        logits_BN, variables = forward(module, params, variables, batch[inputs], key, train)
        weights_B = example_weights(batch, logits_BN.shape[0])
        metrics = classification_metrics(logits_BN, batch[labels], weights_B, smoothing)
        return weighted_mean(metrics["loss"]), Aux(metrics, variables)

    return objective
