"""Contrast: of a batch of pairs each one's two halves have to find each other among all halves.

Legend of the shape suffixes: B batch; rows are one half of the pairs (images), columns the other (texts).
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.objective.base import (
    Aux,
    Inputs,
    Objective,
    collected,
    example_weights,
    forward,
    picked,
    weighted_mean,
)


def info_nce(logits_BB: jax.Array, there_B: jax.Array | None = None) -> jax.Array:
    """Symmetric softmax cross-entropy of each pair: ``-(log softmax_j(z_ij)[i] + log softmax_j(z_ji)[i]) / 2``.

    Args:
        logits_BB: z, [B, B]; z_ij says how well row i and column j fit; computed in float32.
        there_B: bool or 0 and 1: which pairs there are; the others are nobody's alternative, and their own loss is 0.
            None: all.

    Returns:
        float32 [B].

    Raises:
        UserError: the logits are not square.

    Example:
        >>> print(info_nce(jnp.zeros((4, 4))).round(4))
        [1.3863 1.3863 1.3863 1.3863]

    Reference:
        van den Oord et al. (2018), "Representation learning with contrastive predictive coding", arXiv:1807.03748;
        Radford et al. (2021), "CLIP", arXiv:2103.00020, figure 3.
    """
    logits_BB, there_B = _square(logits_BB, there_B)
    found = []
    for z_BB in (logits_BB, logits_BB.T):
        z_BB = jnp.where(there_B | jnp.eye(len(z_BB), dtype=bool), z_BB, -jnp.inf)
        found.append(-jnp.diagonal(jax.nn.log_softmax(z_BB)))
    return jnp.where(there_B, (found[0] + found[1]) / 2, 0)


def pairwise_sigmoid(logits_BB: jax.Array, there_B: jax.Array | None = None) -> jax.Array:
    """``-Σ_j (log sigmoid(y_ij z_ij) + log sigmoid(y_ij z_ji)) / 2`` of each pair, y_ii = 1, else y_ij = -1.

    Each entry is a question by itself, whether i and j are a pair. The mean over the pairs is the loss of the paper.

    Args:
        logits_BB, there_B: see `info_nce`.

    Returns:
        float32 [B].

    Raises:
        UserError: the logits are not square.

    Example:
        >>> print(pairwise_sigmoid(jnp.zeros((4, 4))).round(4))
        [2.7726 2.7726 2.7726 2.7726]

    Reference:
        Zhai et al. (2023), "Sigmoid loss for language image pre-training", arXiv:2303.15343, equation 1. Deviation: the
        whole [B, B] is formed; the paper goes through it in blocks of devices.
    """
    logits_BB, there_B = _square(logits_BB, there_B)
    sign_BB = 2 * jnp.eye(len(logits_BB)) - 1
    each_BB = -jax.nn.log_sigmoid(sign_BB * logits_BB)
    each_BB = jnp.where(there_B[:, None] & there_B, each_BB, 0)
    return (each_BB.sum(axis=0) + each_BB.sum(axis=1)) / 2


LOSSES: Mapping[str, Callable[..., jax.Array]] = {"softmax": info_nce, "sigmoid": pairwise_sigmoid}


def contrast(
    module: nn.Module, *, loss: str = "softmax", train: bool = True, inputs: Inputs = ("text", "image")
) -> Objective:
    """Objective of pairs: loss = Σ_b w_b l_b / Σ_b w_b, w = mask * weight, l of `info_nce` or `pairwise_sigmoid`.

    The alternatives of a pair are the others of its batch, so that loss and metrics depend on the batch's size. Pairs
    with w = 0 (padding) are no alternatives.

    Args:
        module: linen module from inputs to logits [B, B], scaled (and shifted) already, such as
            `jaxbig.models.clip.CLIP`; see `forward` for its flags and collections.
        loss: "softmax" (CLIP) or "sigmoid" (SigLIP).
        train: dropout on, collections updated; False for evaluation.
        inputs: what the module is called with, see `jaxbig.objective.base.picked`. ``mask`` and ``weight`` [B] count
            where the batch has them.

    Returns:
        objective with the metrics ``loss``, ``row_accuracy`` and ``column_accuracy``: how often the largest logit of a
        row (an image's among texts), and of a column (a text's among images), is its own.

    Raises:
        UserError: an unknown loss; while tracing, logits that are not square.

    Example:
        >>> class Halves(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, one, other):
        ...         return nn.Dense(2, name="one")(one) @ nn.Dense(2, name="other")(other).T
        >>> batch = {"text": jnp.zeros((4, 3)), "image": jnp.zeros((4, 5))}
        >>> params = Halves().init(jax.random.key(0), batch["text"], batch["image"])["params"]
        >>> value, aux = contrast(Halves())(params, {}, batch, None)
        >>> round(float(value), 4), sorted(aux.metrics)
        (1.3863, ['column_accuracy', 'loss', 'row_accuracy'])

    Reference:
        Radford et al. (2021), arXiv:2103.00020; Zhai et al. (2023), arXiv:2303.15343. Deviation: CLIP's limit of its
        scale at 100 is not part of the loss.

    Cost: B² logits beside the module.
    """
    if loss not in LOSSES:
        raise UserError(f"contrast: loss={loss!r}; use one of {', '.join(LOSSES)}")

    def objective(params, variables, batch, key):
        logits_BB, variables = forward(module, params, variables, picked(batch, inputs), key, train)
        weights_B = example_weights(batch, logits_BB.shape[0])
        there_B, count = weights_B != 0, weights_B.sum()
        metrics = {"loss": ((weights_B * LOSSES[loss](logits_BB, there_B)).sum(), count)}
        own_B = jnp.arange(logits_BB.shape[0])
        for name, z_BB in (("row", logits_BB), ("column", logits_BB.T)):
            found_B = jnp.where(there_B, z_BB, -jnp.inf).argmax(axis=1) == own_B
            metrics[f"{name}_accuracy"] = ((weights_B * found_B).sum(), count)
        return weighted_mean(metrics["loss"]), Aux(metrics, variables, collected(batch, train))

    return objective


def _square(logits_BB: jax.Array, there_B: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    if logits_BB.ndim != 2 or logits_BB.shape[0] != logits_BB.shape[1]:
        raise UserError(f"contrast: logits {logits_BB.shape}; give [B, B], a row and a column for each pair")
    there_B = jnp.ones(len(logits_BB), bool) if there_B is None else jnp.asarray(there_B, bool)
    return logits_BB.astype(jnp.float32), there_B
