"""Evaluation over a whole set: metrics, outputs, predictions. Padding never counts.

Legend of the shape suffix: N examples.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxbig import processes
from jaxbig.data.loader import MASK, Loader
from jaxbig.errors import UserError
from jaxbig.history import Totals
from jaxbig.lift import lift
from jaxbig.objective.base import Aux, Inputs, Objective, picked

PyTree = Any
Outputs = dict[str, np.ndarray]
Summary = Callable[[Outputs], dict[str, float]]
# Batches that the host runs ahead: the device need not wait for it, nor hold what a whole set gives.
_AHEAD = 8


def evaluate(
    objective: Objective, params: PyTree, data: Loader, variables: PyTree = None, report: Summary | None = None
) -> dict[str, float]:
    """Means of an objective's metrics over a dataset, Σ sum / Σ count over its batches, and what `report` adds.

    Args:
        objective: in evaluation mode, e.g. ``classify(module, train=False)``; it gets no random key.
        params: parameters; leaves may be Weights.
        data: batches; give it ``remainder="pad"`` so that every example counts, once. Of several processes each gives
            its own share of the examples, and all get the numbers of the whole.
        variables: the objective's ``vars``; None: {}.
        report: function from the objective's outputs over the whole set, name -> array [N, ...], to further numbers,
            e.g. by `jaxbig.metrics.classification_report`. Examples come in the dataset's own order, processes one
            after another; masked ones are left out. Where both know a name, the report's number stands.

    Returns:
        metric -> mean, the loss first, then what `report` returns.

    Raises:
        UserError: `data` leaves out examples, or there is a `report` but the objective gives no outputs.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from jaxbig.metrics import classification_report
        >>> from jaxbig.objective import classify
        >>> data = Loader({"image": np.eye(3, dtype=np.float32), "label": np.arange(3)}, 2, remainder="pad")
        >>> params = {"kernel": jnp.eye(3) * 9, "bias": jnp.zeros(3)}
        >>> scores = lambda outputs: classification_report(outputs["label"], outputs["logits"], only=["f1"])
        >>> found = evaluate(classify(nn.Dense(3), train=False), params, data, report=scores)
        >>> found["accuracy"], found["f1"]
        (1.0, 1.0)
    """
    variables = {} if variables is None else variables

    @jax.jit
    def measure(params, variables, batch):
        aux = lift(objective)(params, variables, batch, None)[1]
        return Aux(aux.metrics, {}, aux.outputs if report else None)

    totals, outputs = collect(lambda batch: measure(params, variables, batch), data, outputs=report is not None)
    return totals.means() | (report(outputs) if report else {})


def collect(measure: Callable[[Any], Aux], data: Loader, outputs: bool = False) -> tuple[Totals, Outputs]:
    """Totals of the metrics over a dataset, and its outputs: what `evaluate` and a trainer's validation share.

    Args:
        measure: batch -> Aux, compiled; of `vars` nothing is used. Where its arrays are of one process alone, the
            processes' totals and outputs are put together; arrays over all processes' devices are whole already.
        data: batches.
        outputs: whether outputs are wanted.

    Returns:
        totals, and name -> array [N, ...] in the dataset's own order without masked examples; {} if not wanted.

    Raises:
        UserError: `data` leaves out examples, or outputs are wanted but there are none.

    Example:
        >>> data = Loader({"x": np.arange(3.0)}, 2, remainder="pad")
        >>> def measure(batch):
        ...     return Aux({"loss": (batch["mask"] @ batch["x"], batch["mask"].sum())}, {}, {"x": batch["x"]})
        >>> totals, found = collect(measure, data, outputs=True)
        >>> totals.means(), found["x"].tolist()
        ({'loss': 1.0}, [0.0, 1.0, 2.0])
    """
    _whole(data)
    totals, waiting, kept, masks, whole = Totals(), [], [], [], True

    def look(most: int) -> None:
        while len(waiting) > most:
            metrics, given = processes.fetch(waiting.pop(0))
            totals.add([metrics])
            kept.append(given)

    for batch in data.epoch(0):
        aux = measure(batch)
        if outputs and not aux.outputs:
            raise UserError("evaluate: a report needs outputs, but the objective gives none; use train=False")
        whole = processes.is_whole(aux.metrics)
        waiting.append((aux.metrics, aux.outputs if outputs else None))
        masks.append(np.asarray(batch.get(MASK, np.ones(data.batch_size))))
        look(_AHEAD)
    look(0)
    found = _in_order(kept, data.index(0)[0].ravel(), np.concatenate(masks)) if outputs else {}
    return (totals, found) if whole else _together(totals, found)


def predict(fn: Callable[..., Any], params: PyTree, data: Loader, inputs: Inputs = "image") -> np.ndarray:
    """``fn(params, x)`` for every example, in the dataset's own order.

    Args:
        fn: e.g. ``lambda params, x: module.apply({"params": params}, x)``; it is lifted.
        params: parameters; leaves may be Weights.
        data: batches; with ``remainder="pad"``. Its order does not matter.
        inputs: name of x in the batch; or several, see `jaxbig.objective.base.picked`: then x is a mapping, or `fn`
            takes so many arguments after `params`.

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

    def called(batch: Mapping[str, Any]) -> Any:
        x = picked(batch, inputs)
        return run(params, *(x if isinstance(x, tuple) else (x,)))

    outputs = jax.device_get([{"": called(batch)} for batch in data.epoch(0)])
    return _in_order(outputs, index.ravel(), mask.ravel())[""]


def _in_order(batches: list[Mapping[str, np.ndarray]], index: np.ndarray, mask: np.ndarray) -> Outputs:
    """The batches' examples that count, in the order of their positions in the dataset."""
    kept = np.flatnonzero(mask)
    kept = kept[np.argsort(index[kept], kind="stable")]
    return {name: np.concatenate([batch[name] for batch in batches])[kept] for name in batches[0]}


def _together(totals: Totals, outputs: Outputs) -> tuple[Totals, Outputs]:
    """This process's totals and outputs -> those of all processes."""
    whole = Totals()
    whole.add([json.loads(sums) for sums in processes.gather(json.dumps(totals.sums).encode())])
    parts = [processes.from_bytes(part) for part in processes.gather(processes.to_bytes(outputs))]
    return whole, {name: np.concatenate([part[name] for part in parts]) for name in outputs}


def _whole(data: Loader) -> None:
    if data.process_count > 1 and data.process_count != jax.process_count():
        raise UserError(f"evaluate: the loader reads 1 of {data.process_count} parts; give it process_count=1")
    if data.remainder == "drop" and data.size % data.batch_size:
        left = data.size % data.batch_size
        raise UserError(f"evaluate: the loader leaves out {left} of {data.size} examples; give it remainder='pad'")
