"""Techniques as pure transformations of the parameter tree: `Split`, `Transform`, `chain`.

What optax is for gradients, this is for parameters. A technique splits the parameters into what stays, what is
trained and what it keeps for itself, and puts them together again as the tree that the model reads::

    split  = transform.init(key, params, uses)
    params = transform.apply(split, key)          # leaves may be Weights: call the model through `lift`

Only ``split.train`` is ever differentiated and given to the optimiser.
"""

import functools
import inspect
import itertools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbig.errors import UsageError
from jaxbig.tree import PyTree, match, paths, replace
from jaxbig.weight import innermost, is_moved, is_weight, rebase


class Split(NamedTuple):
    """A factorisation of the parameters.

    Attributes:
        params: the tree as the method leaves it; never trained. Leaves may be Weights (codes with their scales); None
            stands where a leaf moved to `train`.
        train: what the optimiser sees, and all that it sees: dictionaries of floating arrays by path.
        state: the method's own arrays: masks in training, schedules, run-time hyperparameters.
    """

    params: PyTree
    train: PyTree
    state: PyTree


class Transform(NamedTuple):
    """A technique.

    Attributes:
        name: the key of its `train` and `state` in a chain.
        init: ``(key, params, uses) -> Split``. Copies every leaf that it moves, so that donating what is trained never
            eats the caller's base. `uses` is what `jaxbig.usage.usage` says of the model.
        apply: ``(split, key=None) -> params``. Pure. The key drives what is random in training (LoRA's dropout);
            None means evaluation.
        update: ``(split, grads, step) -> split``, after each optimiser step; jittable (masks, ranks, averages).
        wrap: ``(split, fn) -> fn`` for what is no weight: prompts before the embeddings, prefixes in a cache.
        config: the factory's name and arguments, enough to build the transform again (`jaxbig.registry.build`).
        reset: ``(split, step) -> masks``, asked after each `update`: which entries of the optimiser's state start at 0
            again (a restarted adapter, regrown weights). A part of `train`'s tree with booleans that broadcast to its
            leaves; {} resets nothing.
    """

    name: str
    init: Callable[..., Split]
    apply: Callable[..., PyTree]
    update: Callable[[Split, PyTree, Any], Split] = lambda split, grads, step: split
    wrap: Callable[[Split, Callable], Callable] = lambda split, fn: fn
    config: Mapping[str, Any] = {}
    reset: Callable[[Split, Any], PyTree] = lambda split, step: {}


FACTORIES: dict[str, Callable[..., Transform]] = {}


def technique(factory: Callable[..., Transform]) -> Callable[..., Transform]:
    """Decorates a factory of transforms: the transform remembers the factory's name and all its arguments.

    The factory is entered in `FACTORIES`, where `jaxbig.registry.build` finds it: a manifest that names a technique of
    yours can be rebuilt once its module is imported.

    Args:
        factory: a function with named parameters that returns a `Transform`.

    Returns:
        the same factory; its transforms have a `config`, which is JSON-able where the arguments are: tuples become
        lists in it, and NumPy's numbers Python's.

    Raises:
        UsageError: the factory takes ``*args`` or ``**kwargs``, or another module has a technique of that name.

    Example:
        >>> from jaxbig.tune.bitfit import bitfit
        >>> dict(bitfit().config)
        {'technique': 'bitfit', 'where': None}
    """
    signature, name = inspect.signature(factory), factory.__name__
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in signature.parameters.values()):
        raise UsageError(f"technique {name}: takes *args or **kwargs, which no manifest can name; name its parameters")
    homes = {factory.__module__, FACTORIES[name].__module__} if name in FACTORIES else set()
    if len(homes - {"__main__"}) > 1:  # a module run as a script may be imported as well
        raise UsageError(f"technique {name}: {' and '.join(sorted(homes))} both have one of that name; rename yours")

    @functools.wraps(factory)
    def build(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        made = factory(*args, **kwargs)

        def init(key, params, uses):
            _check_uses(name, params, uses)
            return made.init(key, params, uses)

        return made._replace(init=init, config={"technique": name, **plain(bound.arguments)})

    FACTORIES[name] = build
    return build


def _check_uses(name: str, params: PyTree, uses: Any) -> None:
    if not isinstance(uses, Mapping):
        raise UsageError(
            f"{name}: uses is a {type(uses).__name__}; pass what jaxbig.usage(fn, params, *example) gives, or {{}}"
        )
    known = set(places(params)) if uses else set()
    if known and not known & set(uses):
        raise UsageError(
            f"{name}: uses is that of another tree: it tells of {next(iter(uses))!r}, which these parameters have not"
        )


def plain(value: Any) -> Any:
    """An argument as JSON gives it back."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    single = isinstance(value, np.generic | np.ndarray | jax.Array) and value.ndim == 0
    return value.item() if single and not isinstance(value, Tracer) else value


def key_for(key: jax.Array, path: str) -> jax.Array:
    """A key of this path's own; it depends on the path alone, not on which other leaves are selected.

    Example:
        >>> key = jax.random.key(0)
        >>> bool(key_for(key, "a/kernel") == key_for(key, "b/kernel"))
        False
    """
    if key is None:
        raise UsageError(f"{path}: its values are drawn at random; give a key, such as jax.random.key(0)")
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def move(params: PyTree, chosen: Mapping[str, Any]) -> Split:
    """A split that trains copies of the chosen leaves and leaves empty places behind; `put_back` undoes it.

    Args:
        params: the tree.
        chosen: path -> leaf; of a Weight, the array at the bottom of its nest moves.

    Returns:
        a Split without state.
    """
    copies = {path: jnp.array(innermost(leaf), copy=True) for path, leaf in chosen.items()}
    return Split(replace(params, {path: rebase(leaf, lambda _: None) for path, leaf in chosen.items()}), copies, {})


def put_back(split: Split, key: Any = None) -> PyTree:
    """The `apply` of a split made by `move`."""
    left = paths(split.params)
    return replace(
        split.params, {path: rebase(left.get(path), lambda _, leaf=leaf: leaf) for path, leaf in split.train.items()}
    )


def folded(key: Any, i: int) -> Any:
    """The key of the i-th of several links; None stays None."""
    return None if key is None else jax.random.fold_in(key, i)


def numbered(names: list[str]) -> list[str]:
    """The names of several links, each once: one that comes again gets ``_1``, ``_2``, ..."""
    result: list[str] = []
    for name in names:
        later = (f"{name}_{count}" for count in itertools.count(1))
        result.append(next(new for new in itertools.chain([name], later) if new not in result))
    return result


def chain(*links: Transform) -> Transform:
    """Several techniques, one after the other.

    `params` is threaded through the links in order, in `init` and in `apply`: each sees what the ones before it left.
    `train` and `state` are dictionaries by link name; a name that comes again gets ``_1``, ``_2``, ...

    Args:
        *links: transforms.

    Returns:
        the chain, itself a transform (it nests).

    Example:
        >>> from jaxbig.compress.quantize import quantize
        >>> from jaxbig.tune.lora import lora
        >>> chain(quantize("nf4"), lora(rank=16)).name
        'chain'
    """
    names = numbered([link.name for link in links])

    def part(split: Split, name: str, params: PyTree) -> Split:
        return Split(params, split.train[name], split.state[name])

    def init(key, params, uses):
        train, state = {}, {}
        for i, (name, link) in enumerate(zip(names, links, strict=True)):
            params, train[name], state[name] = link.init(folded(key, i), params, uses)
        return Split(params, train, state)

    def apply(split, key=None):
        params = split.params
        for i, (name, link) in enumerate(zip(names, links, strict=True)):
            params = link.apply(part(split, name, params), folded(key, i))
        return params

    def update(split, grads, step):
        params, train, state = split.params, {}, {}
        for name, link in zip(names, links, strict=True):
            params, train[name], state[name] = link.update(part(split, name, params), grads[name], step)
        return Split(params, train, state)

    def wrap(split, fn):
        for name, link in zip(names, links, strict=True):
            fn = link.wrap(part(split, name, split.params), fn)
        return fn

    def reset(split, step):
        return {
            name: link.reset(part(split, name, split.params), step) for name, link in zip(names, links, strict=True)
        }

    config = {"technique": "chain", "links": [link.config for link in links]}
    return Transform("chain", init, apply, update, wrap, config, reset)


def places(params: PyTree) -> list[str]:
    """All paths, empty places included."""
    filled = jax.tree.map(lambda leaf: 0, params, is_leaf=lambda leaf: leaf is None or is_weight(leaf))
    return list(paths(filled))


def selected(
    where: Any, params: PyTree, default: Callable[[str, Any], bool], uses: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The leaves a technique works on: those of `where`, or, if that is None, those that `default` accepts.

    Args:
        where: a pattern, several, or None.
        params: the tree the technique was given.
        default: ``(path, leaf) -> bool``.
        uses: what `default` reads, if it does: the error then says why it found nothing.

    Returns:
        path -> leaf.

    Raises:
        UsageError: nothing is left to work on, or `where` matches nothing.
    """
    leaves = {path: leaf for path, leaf in paths(params).items() if not is_moved(leaf)}
    if where is not None:
        return {path: leaves[path] for path in match(where, leaves)}
    chosen = {path: leaf for path, leaf in leaves.items() if default(path, leaf)}
    all_places = len(places(params))
    if all_places and not chosen:
        missing = all_places - len(leaves)
        gone = f" ({missing} of {all_places} belong to other links)" if missing else ""
        raise UsageError(
            f"no parameter{gone} is of the kind this technique takes by default{_why(leaves, uses)}; name some with "
            f"where=...{gone and ', or let the other links take less'}"
        )
    return chosen


def _why(leaves: Mapping[str, Any], uses: Mapping[str, Any] | None) -> str:
    """What there is to say of a tree in which no leaf is of the right kind."""
    if uses is None:
        return ""
    if not any(uses.values()):
        return ": uses is empty, and tells of none; pass what jaxbig.usage(fn, params, *example) gives"
    multiplied = {path: its for path in leaves for its in [uses.get(path, ())] if any(u.kind == "product" for u in its)}
    heads = [path for path, its in multiplied.items() if any(use.head for use in its)]
    return (
        f": {', '.join(heads)} is the model's head, and nothing else is multiplied"
        if heads and len(heads) == len(multiplied)
        else ""
    )
