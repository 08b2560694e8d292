"""What a run leaves in its folder so that another process can go on: its state in parts, and what makes it that run."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxbig.data.source import as_source
from jaxbig.data.source import fingerprint as data_fingerprint
from jaxbig.errors import UserError
from jaxbig.fingerprint import fingerprint
from jaxbig.job import Task
from jaxbig.step import TrainState

PyTree = Any
# The parts of a state that a checkpoint can give back alone; an adapter's checkpoint holds nothing of its base.
APART = ("train", "state", "vars", "optimizer")


def parts(state: TrainState) -> dict[str, PyTree]:
    """A state as it is saved: what is trained, the technique's, the objective's and the optimiser's arrays apart."""
    split = state.split
    named = {"train": split.train, "state": split.state, "vars": state.vars, "optimizer": state.opt_state}
    return named | {"key": state.key, "step": state.step}


def from_parts(named: Mapping[str, PyTree], like: TrainState) -> TrainState:
    """The state of which `parts` made `named`; `like` gives what is not saved."""
    split = like.split._replace(train=named["train"], state=named["state"])
    return TrainState(named["step"], split, named["vars"], named["optimizer"], named["key"])


def identity(task: Task, base: PyTree, state: TrainState) -> dict[str, Any]:
    """What two processes have to agree on to be one run.

    Args:
        task: what is computed.
        base: the frozen base.
        state: at step 0.

    Returns:
        JSON-able dictionary: the data and its order, the transform with its arguments, ways to get the gradient, and
        fingerprints of key, base and first trained tree.
    """
    data = task.data
    found: dict[str, Any] = {"examples": data.size, "batch_size": data.batch_size, "data seed": data.seed}
    found |= {"shuffle": data.shuffle, "remainder": data.remainder, "data": data_fingerprint(as_source(data.source))}
    found |= {"key": fingerprint(state.key), "base": fingerprint(base), "first train": fingerprint(state.split)}
    found |= {"augment": _named(data.augment), "ways": [_named(way) for way in task.ways]}
    return found | {"transform": _plain(task.transform.config)}


def check(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Compares a saved identity with this run's.

    Raises:
        UserError: they differ; the message names the first entry that does, with both values.
    """
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UserError(
                f"{where} is of another run: its {name} was {found.get(name)}, now {value}; use the settings of that "
                f"run, or another workdir"
            )


def _named(function: Any) -> str:
    """What a function or record says of itself, without where it lies in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(function))


def _plain(value: Any) -> Any:
    """Arguments of a technique as JSON knows them."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return np.asarray(value).tolist() if hasattr(value, "dtype") else value
