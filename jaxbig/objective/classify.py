"""Classification: softmax cross-entropy.

Legend of the shape suffixes: B batch, N classes.
"""

from collections.abc import Sequence

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


def cross_entropy(
    logits_BN: jax.Array, labels: jax.Array, smoothing: float = 0.0, class_weights: Sequence[float] | None = None
) -> jax.Array:
    """Softmax cross-entropy of each example: -Σ_n c_n q_n log softmax(z)_n, q = (1 - ε) p + ε / N.

    Args:
        logits_BN: [B, N]; computed in float32.
        labels: integers [B], p = onehot(label); or p itself, probabilities [B, N].
        smoothing: ε.
        class_weights: c, N numbers; None: 1 each.

    Returns:
        float32 [B].

    Raises:
        UserError: shapes of logits and labels do not fit, or there are not N class weights.

    Example:
        >>> print(cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).round(4))
        [1.3863]
        >>> print(cross_entropy(jnp.zeros((1, 4)), jnp.array([[0.5, 0.5, 0.0, 0.0]])).round(4))
        [1.3863]

    Reference:
        Szegedy et al. (2015), "Rethinking the Inception architecture", arXiv:1512.00567, section 7.
    """
    logits_BN = logits_BN.astype(jnp.float32)
    if _are_probabilities(logits_BN, labels):
        each_B = -(labels.astype(jnp.float32) * _log_p(logits_BN, class_weights)).sum(axis=-1)
    else:
        each_B = optax.softmax_cross_entropy_with_integer_labels(logits_BN, labels)
        each_B = each_B if class_weights is None else each_B * _share(logits_BN, labels, class_weights)
    if not smoothing:
        return each_B
    return (1 - smoothing) * each_B - smoothing * _log_p(logits_BN, class_weights).mean(axis=-1)


def classification_metrics(
    logits_BN: jax.Array,
    labels: jax.Array,
    weights_B: jax.Array,
    smoothing: float = 0.0,
    *,
    class_weights: Sequence[float] | None = None,
    top_k: Sequence[int] = (),
    confusion: bool = False,
) -> Metrics:
    """``loss``, ``accuracy`` and more of a batch as (weighted sum, sum of weights).

    Args:
        logits_BN: [B, N].
        labels: integers [B], or probabilities [B, N]: then accuracy is against the most probable class.
        weights_B: how much each example counts, float32 [B].
        smoothing: of the labels, for the loss.
        class_weights: c, N numbers, for the loss: both its sum and its count weigh example b by Σ_n c_n p_bn.
        top_k: for each k a metric ``top_k_accuracy``: whether the label is among the k largest logits. Of equal logits
            the first counts as larger, as in ``accuracy``.
        confusion: the metric ``confusion``, whose sum is [N, N]: entry [i, j] is the weight of class i taken for j.

    Returns:
        name -> (sum, count).

    Raises:
        UserError: shapes do not fit, or a k is not between 1 and N.

    Example:
        >>> logits, labels = jnp.array([[9.0, 0.0], [9.0, 0.0]]), jnp.array([0, 1])
        >>> metrics = classification_metrics(logits, labels, jnp.ones(2), top_k=(2,), confusion=True)
        >>> [(float(metrics[name][0]), float(metrics[name][1])) for name in ("accuracy", "top_2_accuracy")]
        [(1.0, 2.0), (2.0, 2.0)]
        >>> metrics["confusion"][0].tolist()
        [[1.0, 0.0], [1.0, 0.0]]
    """
    loss_B = cross_entropy(logits_BN, labels, smoothing, class_weights)
    classes = logits_BN.shape[-1]
    count = seen = weights_B.sum()
    if class_weights is not None:
        seen = (weights_B * _share(logits_BN, labels, class_weights)).sum()
    labels_B = labels.argmax(axis=-1) if _are_probabilities(logits_BN, labels) else labels
    chosen_B = logits_BN.argmax(axis=-1)
    correct_B = (chosen_B == labels_B).astype(jnp.float32)
    metrics = {"loss": ((weights_B * loss_B).sum(), seen), "accuracy": ((weights_B * correct_B).sum(), count)}
    for k in top_k:
        if not 1 <= k <= classes:
            raise UserError(f"classify: top_k has {k}, but the model has {classes} classes; use 1 to {classes}")
        among_B = (jax.lax.top_k(logits_BN, k)[1] == labels_B[:, None]).any(axis=-1)
        metrics[f"top_{k}_accuracy"] = ((weights_B * among_B).sum(), count)
    if confusion:
        matrix = jnp.zeros((classes, classes), jnp.float32).at[labels_B, chosen_B].add(weights_B)
        metrics["confusion"] = (matrix, count)
    return metrics


def classify(
    module: nn.Module,
    *,
    train: bool = True,
    smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    top_k: Sequence[int] = (),
    confusion: bool = False,
    inputs: Inputs = "image",
    labels: str = "label",
) -> Objective:
    """Objective of classification: loss = Σ_b w_b CE(module(x_b), y_b) / Σ_b w_b c_{y_b}, w = mask * weight.

    A module with one output ([B, 1] or [B]) is a binary classifier: its output z stands for the logits [0, z], which
    makes the loss the binary cross-entropy of sigmoid(z).

    Args:
        module: linen module from inputs to logits [B, N]; see `forward` for its flags and collections.
        train: dropout on, collections updated; False for evaluation.
        smoothing: label smoothing, from 0 to 1.
        class_weights: c, N numbers for classes that shall count more or less in the loss; None: 1 each.
        top_k: further metrics, e.g. ``(5,)`` for ``top_5_accuracy``.
        confusion: sum up the confusion matrix too; of it come ``precision``, ``recall`` and ``f1``, each the mean over
            the classes (`jaxbig.metrics.sums`). It costs N² numbers a batch.
        inputs: what the module is called with: a name in the batch, or several, see `jaxbig.objective.base.picked`.
        labels: name in the batch. Labels are integers [B], or probabilities [B, N] (mixed examples, a
            teacher's opinion). ``mask`` and ``weight`` [B] count where the batch has them.

    Returns:
        objective with the metrics ``loss`` and ``accuracy``, and in evaluation the outputs ``logits`` and ``label``.

    Raises:
        UserError: `smoothing` is not between 0 and 1; while tracing, class weights, k or shapes that do not fit.

    Example:
        >>> module = nn.Dense(3)
        >>> params = module.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
        >>> batch = {"image": jnp.zeros((4, 2)), "label": jnp.zeros(4, jnp.int32)}
        >>> loss, aux = classify(module)(params, {}, batch, None)
        >>> round(float(loss), 4), sorted(aux.metrics)
        (1.0986, ['accuracy', 'loss'])

    Reference:
        Class weights normalise as PyTorch's ``CrossEntropyLoss(weight)`` does with integer labels. Deviation: labels as
        probabilities are normalised by Σ_b w_b Σ_n c_n p_bn too, so that onehot(label) and the integer are one loss;
        PyTorch divides by B there.
    """
    if not 0 <= smoothing <= 1:
        raise UserError(f"classify: smoothing={smoothing}; use a number between 0 and 1")

    def objective(params, variables, batch, key):
        output, variables = forward(module, params, variables, picked(batch, inputs), key, train)
        logits_BN, label = _two_logits(output), jnp.asarray(batch[labels])
        weights_B = example_weights(batch, logits_BN.shape[0])
        metrics = classification_metrics(
            logits_BN, label, weights_B, smoothing, class_weights=class_weights, top_k=top_k, confusion=confusion
        )
        outputs = collected(batch, train, logits=logits_BN, label=label)
        return weighted_mean(metrics["loss"]), Aux(metrics, variables, outputs)

    return objective


def _two_logits(output: jax.Array) -> jax.Array:
    output = output[:, None] if output.ndim == 1 else output
    return jnp.concatenate([jnp.zeros_like(output), output], axis=-1) if output.shape[-1] == 1 else output


def _are_probabilities(logits_BN: jax.Array, labels: jax.Array) -> bool:
    if labels.shape not in (logits_BN.shape, logits_BN.shape[:-1]):
        raise UserError(
            f"classify: logits {logits_BN.shape} and labels {labels.shape}; give integers {logits_BN.shape[:-1]} "
            f"or probabilities {logits_BN.shape}"
        )
    return labels.shape == logits_BN.shape


def _log_p(logits_BN: jax.Array, class_weights: Sequence[float] | None) -> jax.Array:
    """c log softmax(z)."""
    log_p_BN = jax.nn.log_softmax(logits_BN)
    return log_p_BN if class_weights is None else log_p_BN * _class_weights(class_weights, logits_BN.shape[-1])


def _share(logits_BN: jax.Array, labels: jax.Array, class_weights: Sequence[float]) -> jax.Array:
    """How much the class of each example counts."""
    weights_N = _class_weights(class_weights, logits_BN.shape[-1])
    return (labels * weights_N).sum(axis=-1) if _are_probabilities(logits_BN, labels) else weights_N[labels]


def _class_weights(class_weights: Sequence[float], classes: int) -> jax.Array:
    weights_N = jnp.asarray(class_weights, jnp.float32)
    if weights_N.shape != (classes,):
        raise UserError(f"classify: class_weights {weights_N.shape} for {classes} classes; give one number a class")
    return weights_N
