"""Evaluation over a whole set: metrics, predictions, the confusion matrix. Padding never counts.

Legend of the shape suffixes: N examples, C classes.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxbig.data.loader import Loader
from jaxbig.errors import UserError
from jaxbig.history import Totals
from jaxbig.lift import lift
from jaxbig.objective.base import Objective

PyTree = Any


def evaluate(objective: Objective, params: PyTree, data: Loader, variables: PyTree = None) -> dict[str, float]:
    """Means of an objective's metrics over a dataset: Σ sum / Σ count over its batches.

    Args:
        objective: in evaluation mode, e.g. ``classify(module, train=False)``; it gets no random key.
        params: parameters; leaves may be Weights.
        data: batches; give it ``remainder="pad"`` so that every example counts, once.
        variables: the objective's ``vars``; None: {}.

    Returns:
        metric -> mean.

    Raises:
        UserError: `data` leaves out examples.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from jaxbig.objective import classify
        >>> data = Loader({"image": np.eye(3, dtype=np.float32), "label": np.arange(3)}, 2, remainder="pad")
        >>> evaluate(classify(nn.Dense(3)), {"kernel": jnp.eye(3) * 9, "bias": jnp.zeros(3)}, data)["accuracy"]
        1.0
    """
    _whole(data)
    measure = jax.jit(lambda params, variables, batch: lift(objective)(params, variables, batch, None)[1].metrics)
    variables = {} if variables is None else variables
    totals = Totals()
    # Fetched at the end, so that the device need not wait for the host between batches.
    totals.add(jax.device_get([measure(params, variables, batch) for batch in data.epoch(0)]))
    return totals.means()


def predict(fn: Callable[[PyTree, Any], Any], params: PyTree, data: Loader, inputs: str = "image") -> np.ndarray:
    """``fn(params, x)`` for every example, in the dataset's own order.

    Args:
        fn: e.g. ``lambda params, x: module.apply({"params": params}, x)``; it is lifted.
        params: parameters; leaves may be Weights.
        data: batches; with ``remainder="pad"``. Its order does not matter.
        inputs: name of x in the batch.

    Returns:
        array [N, ...].

    Raises:
        UserError: `data` leaves out examples.

    Example:
        >>> data = Loader({"image": np.arange(5.0)}, 2, remainder="pad")
        >>> predict(lambda params, x: params * x, 2.0, data).tolist()
        [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    _whole(data)
    run = jax.jit(lift(fn))
    index, mask = data.index(0)
    outputs = np.concatenate(jax.device_get([run(params, batch[inputs]) for batch in data.epoch(0)]))
    kept = mask.ravel() == 1
    result = np.empty((data.size, *outputs.shape[1:]), outputs.dtype)
    result[index.ravel()[kept]] = outputs[kept]
    return result


def confusion(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """The confusion matrix: entry [i, j] counts the examples of class i that were taken for class j.

    Args:
        labels: integers [N].
        predictions: integers [N], or logits [N, C].
        num_classes: C.

    Returns:
        int64 [C, C].

    Raises:
        UserError: lengths differ, or a class is not in 0 ... C-1.

    Example:
        >>> confusion(np.array([0, 1, 1]), np.array([0, 1, 0]), 2).tolist()
        [[1, 0], [1, 1]]
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    predictions = predictions.argmax(axis=-1) if predictions.ndim == 2 else predictions
    if labels.shape != predictions.shape:
        raise UserError(
            f"confusion: {labels.shape} labels and {predictions.shape} predictions; give one of each an example"
        )
    for name, classes in (("label", labels), ("prediction", predictions)):
        if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
            wrong = classes.min() if classes.min() < 0 else classes.max()
            raise UserError(
                f"confusion: {name} {wrong} is not among num_classes={num_classes} classes, 0 to {num_classes - 1}"
            )
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def _whole(data: Loader) -> None:
    if data.process_count > 1:
        raise UserError(f"evaluate: the loader reads 1 of {data.process_count} parts; give it process_count=1")
    if data.remainder == "drop" and data.size % data.batch_size:
        left = data.size % data.batch_size
        raise UserError(f"evaluate: the loader leaves out {left} of {data.size} examples; give it remainder='pad'")
