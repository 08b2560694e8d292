"""What adapters have in common: they dress selected leaves in a Weight whose other parts are trained."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxbig.site import Site, sites
from jaxbig.transform import Split, Transform
from jaxbig.tree import paths, replace
from jaxbig.weight import Weight

Start = Callable[[Any, str, Site], tuple[Mapping[str, Any], Weight]]


def _nothing(state: Any, path: str) -> Mapping[str, Any]:
    return {}


def adapter(
    name: str, where: Any, start: Start, more: Callable[[Any, str], Mapping[str, Any]] = _nothing, shared: Any = None
) -> Transform:
    """A transform that puts a Weight in the place of each selected leaf, with the leaf as its base.

    Args:
        name: of the technique.
        where: see `jaxbig.site.sites`.
        start: ``(key, path, site) -> (train, weight)``: what is trained there at first, part name -> array, and the
            Weight without base and without those parts: what it holds besides is kept in `state`. `key` is None where
            `init` got none; `jaxbig.transform.key_for` says so to the user.
        more: ``(state, path) -> parts`` put into the Weight at `apply`: numbers of the technique (which
            `inject_hyperparams` may trace), or what `shared` holds.
        shared: None, or ``(key, sites) -> arrays`` that all leaves share, kept as ``state["shared"]``.

    Returns:
        the transform: ``train[path]`` is `start`'s, ``state[path]`` its Weight.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxbig.matrix import Diagonal
        >>> from jaxbig.usage import usage
        >>> start = lambda key, path, site: (
        ...     {"gain": jnp.full(site.matrix[1], 2.0)}, Diagonal(None, site.in_axes, site.out_axes, "out"))
        >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
        >>> split = adapter("mine", "w", start).init(None, params, usage(lambda p, x: x @ p["w"], params, x))
        >>> adapter("mine", "w", start).apply(split)["w"].materialise()[0].tolist()
        [2.0, 2.0, 2.0]
    """

    def init(key, params, uses):
        found, train, state = sites(name, where, params, uses), {}, {}
        for path, site in found.items():
            train[path], state[path] = start(key, path, site)
        return Split(params, train, state if shared is None else {**state, "shared": shared(key, found)})

    def apply(split, key=None):
        bases = paths(split.params)  # a later link that trains the base puts it under the adapter in its own turn
        dressed = {
            path: split.state[path].replace(base=bases.get(path), **parts, **more(split.state, path))
            for path, parts in split.train.items()
        }
        return replace(split.params, dressed)

    return Transform(name, init, apply)
