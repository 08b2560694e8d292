"""Preferences: of two answers to a prompt the better one shall be likelier than a reference finds it (DPO).

Legend of the shape suffixes: B pairs, 2 the chosen and the rejected answer, T tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxbig.errors import UserError
from jaxbig.objective.base import Aux, Objective, PyTree, collected, example_weights, weighted_mean
from jaxbig.objective.language import ANSWERS, TEXTS, Reading, read

REFERENCE = "reference"


def answer_log_p(module: nn.Module, *, chunk: int | None = 128) -> Callable[[PyTree, Mapping[str, Any]], jax.Array]:
    """``(params, batch) -> float32 [B, 2]``: Σ_t log p of the tokens of both answers of each pair.

    With the parameters that a run begins with, the adapter off, it gives `prefer` its reference.

    Args:
        module, chunk: as of `prefer`, in evaluation mode.
    """
    how = Reading(TEXTS, ANSWERS, chunk)

    def log_p(params: PyTree, batch: Mapping[str, Any]) -> jax.Array:
        return _log_p(module, how, params, {}, batch, None, False)[0]

    return log_p


def prefer(
    module: nn.Module, *, beta: float = 0.1, train: bool = True, chunk: int | None = 128, reference: str = REFERENCE
) -> Objective:
    """Objective of direct preference optimisation: -log σ(β (Δ_chosen - Δ_rejected)), Δ = log p - log p_reference.

    log p is the sum over an answer's tokens. The reference is the model that a run begins with, whose log probabilities
    do not change: they are columns of the data, computed once. So no second copy of the base exists, and no second pass
    is made in a step.

    Args:
        module: a decoder of `jaxbig.models`, or with chunk None any module from ``(ids, positions, segments)`` to
            logits.
        beta: β, above 0: the larger, the nearer the model stays to the reference.
        train: dropout on; False for evaluation.
        chunk: see `jaxbig.objective.language.Reading`.
        reference: name in the batch.

    A batch has ``ids``, ``positions``, ``segments`` and ``answers``, [B, 2, T], the chosen answer first, each after its
    prompt (``answers`` are 0 on that), and the reference, float32 [B, 2], what `answer_log_p` gives with the parameters
    before training. Its ``mask`` and ``weight`` [B] count.

    Returns:
        objective with the metrics ``loss``, ``accuracy`` (how often the chosen answer's reward is the larger),
        ``margin`` (the reward of the chosen answer less that of the rejected one), ``chosen`` and ``rejected`` (the
        rewards β Δ); in evaluation the outputs ``rewards`` [B, 2].

    Raises:
        UserError: `beta` is not above 0; while tracing, arrays that do not fit.

    Example:
        >>> from jaxbig.models.llama import Llama
        >>> model = Llama(vocabulary=11, width=8, layers=1, heads=2, kv_heads=1, head_width=4, hidden=12)
        >>> ids = jnp.array([[[1, 2, 3], [1, 2, 4]]])
        >>> same = jnp.ones_like(ids)
        >>> batch = {"ids": ids, "positions": same.cumsum(-1) - 1, "segments": same, "answers": ids > 2}
        >>> params = model.init(jax.random.key(0), ids[0])["params"]
        >>> batch["reference"] = answer_log_p(model)(params, batch)
        >>> loss, aux = prefer(model)(params, {}, batch, None)
        >>> round(float(loss), 4), float(aux.metrics["margin"][0])  # log 2
        (0.6931, 0.0)

    Cost: a pass over 2 B rows.

    Reference: Rafailov et al. (2023), "Direct preference optimization: your language model is secretly a reward model",
    arXiv:2305.18290, equation 7. Deviation: its reference runs in each step; here it has run before.
    """
    if not beta > 0:
        raise UserError(f"prefer: beta={beta}; use a number above 0")
    how = Reading(TEXTS, ANSWERS, chunk)

    def objective(params, variables, batch, key):
        if reference not in batch:
            raise UserError(
                f"prefer: no {reference!r} in the batch; put there what `answer_log_p` gives before training"
            )
        log_p_B2, after = _log_p(module, how, params, variables, batch, key, train)
        old_B2 = jnp.asarray(batch[reference], jnp.float32)
        if old_B2.shape != log_p_B2.shape:
            raise UserError(f"prefer: {reference} {old_B2.shape} for {log_p_B2.shape[0]} pairs; give [B, 2]")
        rewards_B2 = beta * (log_p_B2 - old_B2)
        margin_B = rewards_B2[:, 0] - rewards_B2[:, 1]
        weights_B = example_weights(batch, margin_B.shape[0])
        each = {
            "loss": -jax.nn.log_sigmoid(margin_B),
            "accuracy": (margin_B > 0).astype(jnp.float32),
            "margin": margin_B,
            "chosen": rewards_B2[:, 0],
            "rejected": rewards_B2[:, 1],
        }
        metrics = {name: ((weights_B * its).sum(), weights_B.sum()) for name, its in each.items()}
        return weighted_mean(metrics["loss"]), Aux(metrics, after, collected(batch, train, rewards=rewards_B2))

    return objective


def _log_p(
    module: nn.Module, how: Reading, params: PyTree, variables: PyTree, batch: Mapping[str, Any], key: Any, train: bool
) -> tuple[jax.Array, PyTree]:
    texts = {}
    for name in (*TEXTS, ANSWERS):
        shape = jnp.shape(batch[name]) if name in batch else ()
        if len(shape) != 3 or shape[1] != 2:
            found = f"{name} is {shape}" if name in batch else f"no {name!r} in the batch"
            raise UserError(f"prefer: {found}; give [B, 2, T], the chosen answer first")
        texts[name] = rearrange(jnp.asarray(batch[name]), "B two T -> (B two) T")
    said = read(module, how, params, variables, texts, key, train)
    return rearrange((said.targets_BT * said.log_p_BT).sum(axis=1), "(B two) -> B two", two=2), said.vars
