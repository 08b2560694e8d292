"""Distillation of logits: a small student learns from a teacher's soft targets.

Legend of the shape suffixes: B batch, N classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.objective.base import Aux, Inputs, Objective, collected, example_weights, forward, picked, weighted_mean
from jaxbig.objective.classify import classification_metrics


def soft_cross_entropy(teacher_BN: jax.Array, student_BN: jax.Array, temperature: float) -> jax.Array:
    """T² KL(softmax(teacher / T) || softmax(student / T)) of each example.

    Args:
        teacher_BN, student_BN: logits [B, N]; computed in float32.
        temperature: T. The factor T² keeps the gradient's size when T changes.

    Returns:
        float32 [B], not negative; its gradient is that of the cross-entropy with soft targets, times T².

    Example:
        >>> print(soft_cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 0.0]]), 1.0).round(4))
        [0.3278]

    Reference:
        Hinton, Vinyals, Dean (2015), "Distilling the knowledge in a neural network", arXiv:1503.02531. Deviation: the
        divergence in place of the cross-entropy, so that a student equal to its teacher has loss 0.
    """
    teacher_BN = jax.nn.log_softmax(teacher_BN.astype(jnp.float32) / temperature)
    student_BN = jax.nn.log_softmax(student_BN.astype(jnp.float32) / temperature)
    return temperature**2 * (jnp.exp(teacher_BN) * (teacher_BN - student_BN)).sum(axis=-1)


def distill(
    teacher: nn.Module,
    student: nn.Module,
    *,
    temperature: float = 2.0,
    alpha: float = 0.5,
    train: bool = True,
    inputs: Inputs = "image",
    labels: str = "label",
) -> Objective:
    """Objective over ``{"teacher": ..., "student": ...}``: α T² KL(teacher_T || student_T) + (1 - α) CE(student).

    Parameters and ``vars`` are both such trees (``vars`` may be {}). The teacher runs in evaluation mode and gets no
    gradient, so train with ``full(where="student/.*")`` and leave it frozen. Cost: one forward pass of the teacher.

    Args:
        teacher, student: linen modules from inputs to logits [B, N].
        temperature: T, above 0.
        alpha: α, share of the soft targets, from 0 to 1. With 1 the batch needs no labels, and the metrics are those
            against the teacher's choice.
        train: the student's dropout and collections; False for evaluation.
        inputs: what the module is called with: a name in the batch, or several, see `jaxbig.objective.base.picked`.
        labels: name in the batch. ``mask`` and ``weight`` [B] count where the batch has them.

    Returns:
        objective with the metrics ``loss``, ``soft_loss``, ``hard_loss``, ``accuracy`` (the student's) and
        ``agreement`` (how often both choose the same class), and in evaluation the student's outputs ``logits`` and
        ``label``.

    Raises:
        UserError: `temperature` or `alpha` out of range, or teacher and student have different classes.

    Example:
        >>> module = nn.Dense(3)
        >>> params = module.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
        >>> batch = {"image": jnp.ones((4, 2)), "label": jnp.zeros(4, jnp.int32)}
        >>> loss, _ = distill(module, module, alpha=1.0)({"teacher": params, "student": params}, {}, batch, None)
        >>> float(loss)
        0.0

    Reference:
        Hinton, Vinyals, Dean (2015), arXiv:1503.02531.
    """
    if temperature <= 0 or not 0 <= alpha <= 1:
        raise UserError(f"distill: temperature={temperature}, alpha={alpha}; use temperature > 0 and alpha from 0 to 1")

    def objective(params, variables, batch, key):
        variables = {"teacher": {}, "student": {}} | (variables or {})
        x = picked(batch, inputs)
        teacher_BN, _ = forward(teacher, params["teacher"], variables["teacher"], x, None, train=False)
        teacher_BN = jax.lax.stop_gradient(teacher_BN)
        student_BN, after = forward(student, params["student"], variables["student"], x, key, train)
        if teacher_BN.shape != student_BN.shape:
            raise UserError(
                f"distill: teacher's logits {teacher_BN.shape}, student's {student_BN.shape}; their classes must agree"
            )
        weights_B = example_weights(batch, student_BN.shape[0])
        chosen_B = teacher_BN.argmax(axis=-1)
        targets_B = batch[labels] if alpha < 1 or labels in batch else chosen_B
        metrics = classification_metrics(student_BN, targets_B, weights_B)
        hard, count = metrics.pop("loss")
        soft = (weights_B * soft_cross_entropy(teacher_BN, student_BN, temperature)).sum()
        same = (weights_B * (student_BN.argmax(axis=-1) == chosen_B)).sum()
        metrics |= {
            "loss": (alpha * soft + (1 - alpha) * hard, count),
            "soft_loss": (soft, count),
            "hard_loss": (hard, count),
            "agreement": (same, count),
        }
        outputs = collected(batch, train, logits=student_BN, label=targets_B)
        return weighted_mean(metrics["loss"]), Aux(metrics, variables | {"student": after}, outputs)

    return objective
