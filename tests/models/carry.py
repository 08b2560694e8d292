"""Weights of a torch model as the parameters of a module of ours, by the table of its family alone."""

import re

import jax
import numpy as np

from jaxbig.models.family import LAYERS
from jaxbig.tree import paths

TURNS = {
    "same": lambda array: array,
    "matrix": lambda array: array.T,
    "conv": lambda array: np.moveaxis(array, (0, 1), (-1, -2)),
}


def array_of(value):
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def tied(one, other):
    """Whether two tensors are one; equal constants (norms of a fresh model) say nothing."""
    return one.shape == other.shape and np.array_equal(one, other) and one.size > 1 and np.ptp(one) > 0


def shapes_of(module, family):
    """Path of each leaf -> its shape, nothing allocated."""
    leaves = jax.eval_shape(module.init, jax.random.key(0), *family.example(module))["params"]
    return {path: leaf.shape for path, leaf in paths(leaves).items()}


def leaves_of(module, family, state, dtype=np.float64):
    """Path of each leaf -> its array, and the names that were read."""
    wanted, found, read = shapes_of(module, family), {}, set()

    def get(name):
        bare = name.removeprefix(family.prefix + ".")
        name = name if name in state else bare
        assert name in state, f"the model has no {name}, only {sorted(state)}"
        read.add(name)
        return array_of(state[name]).astype(dtype)

    def there(name):
        return name in state or name.removeprefix(family.prefix + ".") in state

    def put(path, array):
        assert path in wanted, f"{path}: the table tells it, the module has it not, only {sorted(wanted)}"
        assert path not in found, f"{path}: twice in the table"
        assert array.shape == wanted[path], f"{path}: {array.shape}, the module has {wanted[path]}"
        found[path] = array

    for path, name, turn in family.tensors(module):
        if "{}" not in name:
            put(path, TURNS[turn](get(name)))
            continue
        each = []
        while there(name.format(len(each))):
            each.append(TURNS[turn](get(name.format(len(each)))))
        assert each, f"the model has no {name.format(0)}, only {sorted(state)}"
        stacked = path.replace("layer_{}", LAYERS)
        if stacked in wanted:
            put(stacked, np.stack(each))
        else:
            for index, array in enumerate(each):
                put(path.format(index), array)
    assert found.keys() == wanted.keys(), f"not in the table: {sorted(wanted.keys() - found.keys())}"
    return found, read


def carry(module, family, state, but=r"(.*\.)?(position_ids|inv_freq|masked_bias)", dtype=np.float64):
    """Nested parameters of the module, from a torch model's ``state_dict()``.

    Fails where a leaf or a tensor is left over, or a shape differs. A tensor that is no leaf of ours has to be another
    name of one that is (tied), bit for bit, or a buffer whose name fully matches `but`.
    """
    found, read = leaves_of(module, family, state, dtype)
    values = {name: array_of(value) for name, value in state.items()}
    for name in values.keys() - read:
        assert re.fullmatch(but, name) or any(tied(values[name], values[other]) for other in read), (
            f"{name}: a tensor that no leaf is"
        )
    nested = {}
    for path, array in found.items():
        *parents, last = path.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = array
    return nested
