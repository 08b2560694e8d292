"""One technique of an adapter with what it trains, on its way from a file to a transform or back."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.registry import build
from jaxbig.transform import Transform


class Link(NamedTuple):
    """One technique with what it trains.

    Attributes:
        arguments: of its factory, with its name under "technique".
        train: path -> arrays by name, or the array itself.
        state: as the technique keeps it; of one that is read a function, from the state that `init` makes to its own.
    """

    arguments: dict[str, Any]
    train: Mapping[str, Any]
    state: Any


def named(trained: Any) -> dict[str, Any]:
    """The arrays of a path by name, "" where there is but one."""
    return dict(trained) if isinstance(trained, Mapping) else {"": trained}


def built(link: Link) -> Transform:
    """The transform of a link that was read."""
    return build(link.arguments)


def filled(link: Link, train: Mapping[str, Any]) -> dict[str, Any]:
    """What `init` made, with the arrays that were read in their own dtype.

    Raises:
        UserError: an array is of another shape.
    """
    new = {}
    for path, old in train.items():
        its = named(link.train[path])
        for name, was in named(old).items():
            if its[name].shape != was.shape:
                raise UserError(
                    f"{path}: {name or 'the leaf'} has the shape {its[name].shape} in the adapter, and "
                    f"{tuple(was.shape)} as {link.arguments['technique']} would make it"
                )
        arrays = {name: jnp.asarray(its[name]) for name in named(old)}
        new[path] = arrays if isinstance(old, Mapping) else arrays[""]
    return new
