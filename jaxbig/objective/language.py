"""Language modelling: the cross-entropy of the next token, over the tokens that are to be learnt.

Legend of the shape suffixes: B rows, T tokens, D width, V vocabulary, C chunks, t tokens of a chunk.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxbig.errors import UserError
from jaxbig.models.decoder import logits_of
from jaxbig.objective.base import (
    Aux,
    Inputs,
    Objective,
    PyTree,
    collected,
    example_weights,
    forward,
    picked,
    weighted_mean,
)

TEXTS = ("ids", "positions", "segments")
ANSWERS = "answers"


class Said(NamedTuple):
    """What a model makes of texts; place t is about token t + 1, the last place about nothing.

    Attributes:
        log_p_BT: float32, log probability of the next token.
        right_BT: bool, whether it was the likeliest.
        targets_BT: float32, 1 where the next token is a target, of the same example of a packed row.
        vars: the model's collections after the pass.
    """

    log_p_BT: jax.Array
    right_BT: jax.Array
    targets_BT: jax.Array
    vars: PyTree


class Reading(NamedTuple):
    """How texts are read.

    Attributes:
        inputs: what the module is called with, its token ids first, see `jaxbig.objective.base.picked`; packed rows
            have their ``positions`` and ``segments``.
        answers: name in the batch of what is to be learnt, bool or numbers [B, T] that say of each token whether it is
            a target; None: every token is, but for padding where there are ``segments``.
        chunk: tokens of each row whose logits exist at one time, for a decoder of `jaxbig.models`; None: all, for any
            module from ids to logits [B, T, V].
    """

    inputs: Inputs = TEXTS
    answers: str | None = ANSWERS
    chunk: int | None = 128


def read(
    module: nn.Module, how: Reading, params: PyTree, variables: PyTree, batch: Mapping[str, Any], key: Any, train: bool
) -> Said:
    """One pass over texts.

    With a chunk size the head runs on so many tokens at a time, again in the backward pass: of B T V logits, which
    for a small model are more than all its weights, B t V are held.

    Raises:
        UserError: arrays of the batch do not fit; a chunk for a module that is no decoder.
    """
    x = picked(batch, how.inputs)
    ids_BT = x[0] if isinstance(x, tuple) else next(iter(x.values())) if isinstance(x, Mapping) else x
    ids_BT = jnp.asarray(ids_BT)
    next_BT = jnp.roll(ids_BT, -1, axis=1)
    targets_BT = _targets(batch, how, ids_BT)
    if how.chunk is None:
        logits_BTV, after = forward(module, params, variables, x, key, train)
        return Said(*_scored(logits_BTV, next_BT), targets_BT, after)
    task: Any = getattr(module, "task", None)
    if how.chunk < 1 or task != "causal_lm" or not {"tied", "vocabulary"} <= set(dir(module)):
        told = "" if task is None else f" with the task {task!r}"
        raise UserError(
            f"language model: chunk={how.chunk} for a {type(module).__name__}{told}; use at least 1, and None for a "
            'module that is no decoder of jaxbig.models with the task "causal_lm"'
        )
    states_BTD, after = forward(module.clone(task="features"), params, variables, x, key, train)
    length, size = ids_BT.shape[1], min(how.chunk, ids_BT.shape[1])

    def parts(array: jax.Array) -> jax.Array:
        filled = jnp.pad(array, [(0, 0), (0, -length % size), *[(0, 0)] * (array.ndim - 2)])
        return rearrange(filled, "B (C t) ... -> C B t ...", t=size)

    # Recomputed in the backward pass: what a chunk's logits need there would be all logits otherwise.
    one = jax.checkpoint(lambda chunk: _scored(logits_of(module, params, chunk[0]), chunk[1]))
    scored = jax.lax.map(one, (parts(states_BTD), parts(next_BT)))
    log_p_BT, right_BT = (rearrange(each, "C B t -> B (C t)")[:, :length] for each in scored)
    return Said(log_p_BT, right_BT, targets_BT, after)


def _scored(logits_BTV: jax.Array, next_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    if logits_BTV.shape[:-1] != next_BT.shape:
        raise UserError(f"language model: logits {logits_BTV.shape} for texts {next_BT.shape}; give [B, T, V]")
    logits_BTV = logits_BTV.astype(jnp.float32)
    chosen_BT = jnp.take_along_axis(logits_BTV, next_BT[..., None], axis=-1)[..., 0]
    log_p_BT = chosen_BT - jax.nn.logsumexp(logits_BTV, axis=-1)
    return log_p_BT, logits_BTV.argmax(axis=-1) == next_BT


def _targets(batch: Mapping[str, Any], how: Reading, ids_BT: jax.Array) -> jax.Array:
    segments = batch.get("segments")
    if how.answers is not None and how.answers not in batch:
        raise UserError(
            f"language model: no {how.answers!r} in the batch, only {', '.join(sorted(batch))}; give answers=NAME, or "
            "None to learn all tokens"
        )
    wanted = jnp.ones(ids_BT.shape) if how.answers is None else jnp.asarray(batch[how.answers], jnp.float32)
    if wanted.shape != ids_BT.shape:
        raise UserError(f"language model: {how.answers} {wanted.shape} for ids {ids_BT.shape}; give one for each token")
    targets_BT = jnp.roll(wanted, -1, axis=1).at[:, -1].set(0)
    if segments is None:
        return targets_BT
    segments = jnp.asarray(segments)
    return targets_BT * ((segments == jnp.roll(segments, -1, axis=1)) & (segments != 0))


def next_token(
    module: nn.Module, *, train: bool = True, inputs: Inputs = TEXTS, answers: str | None = ANSWERS,
    chunk: int | None = 128,
) -> Objective:  # fmt: skip
    """Objective of causal language modelling: -Σ w log p(x_{t+1} | x_{<=t}) / Σ w, w 1 on targets and 0 elsewhere.

    The mean is over the batch's targets, so that a token counts the same in a row with few of them as in one with many.
    In packed rows nothing is predicted over the border of two examples.

    Args:
        module: from token ids to logits [B, T, V].
        train: dropout on, collections updated; False for evaluation.
        inputs, answers, chunk: see `Reading`. The batch's ``mask`` and ``weight`` [B] count where it has them.

    Returns:
        objective with the metrics ``loss`` (nats a token; its exponential is the perplexity) and ``accuracy`` (how
        often the next token is the likeliest), and in evaluation the outputs ``log_p``, the sum over a row's targets,
        and ``tokens``, how many those are, both [B].

    Raises:
        UserError: while tracing: see `read`.

    Example:
        >>> from jaxbig.models.llama import Llama
        >>> model = Llama(vocabulary=11, width=8, layers=1, heads=2, kv_heads=1, head_width=4, hidden=12)
        >>> batch = {"ids": jnp.array([[1, 2, 3, 4]]), "answers": jnp.array([[0, 0, 1, 1]])}
        >>> params = model.init(jax.random.key(0), batch["ids"])["params"]
        >>> loss, aux = next_token(model, inputs="ids")(params, {}, batch, None)
        >>> abs(float(loss) - 2.4) < 0.1, float(aux.metrics["loss"][1])  # log 11 = 2.398
        (True, 2.0)

    Cost: with a chunk the head's product is computed twice more in the backward pass, not once.

    Reference: Radford et al. (2018), "Improving language understanding by generative pre-training"; loss on answers
    alone: Dettmers et al. (2023), "QLoRA", arXiv:2305.14314, section 4.
    """
    how = Reading(inputs, answers, chunk)

    def objective(params, variables, batch, key):
        said = read(module, how, params, variables, batch, key, train)
        weights_BT = said.targets_BT * example_weights(batch, said.log_p_BT.shape[0])[:, None]
        count = weights_BT.sum()
        metrics = {
            "loss": (-(weights_BT * said.log_p_BT).sum(), count),
            "accuracy": ((weights_BT * said.right_BT).sum(), count),
        }
        each = {"log_p": (said.targets_BT * said.log_p_BT).sum(axis=1), "tokens": said.targets_BT.sum(axis=1)}
        return weighted_mean(metrics["loss"]), Aux(metrics, said.vars, collected(batch, train, **each))

    return objective
