"""`partition`: different techniques for different parts of one tree."""

from collections.abc import Mapping
from typing import Any

from jaxbig.transform import Split, Transform, folded, numbered, places, plain
from jaxbig.tree import PyTree, first_match, paths, replace


def partition(parts: Mapping[str, Transform]) -> Transform:
    """Different techniques for different parts of the tree.

    Args:
        parts: where -> transform; the first pattern that matches a leaf owns it, leaves that no pattern matches stay
            frozen. Each transform sees only its own leaves (the other places are None).

    Returns:
        one transform; `train` and `state` are dictionaries by link name, as in `chain`.

    Raises:
        UsageError: in `init`, if a pattern matches no leaf.

    Example:
        >>> from jaxbig.tune.full import full
        >>> from jaxbig.tune.lora import lora
        >>> mixed = partition({"head/.*": full(), ".*": lora(rank=4)})
    """
    links = dict(zip(numbered([link.name for link in parts.values()]), parts.values(), strict=True))

    def shares(params) -> dict[Any, PyTree]:
        """Each link's own leaves, all other places empty; under None those that stay frozen."""
        owner = first_match(list(zip(parts, links, strict=True)), places(params))
        others = {name: {path: None for path, its in owner.items() if its != name} for name in (*links, None)}
        return {name: replace(params, gone) for name, gone in others.items()}

    def together(frozen, trees):
        return replace(frozen, {path: leaf for tree in trees for path, leaf in paths(tree).items()})

    def gathered(frozen, splits) -> Split:
        train, state = ({name: its[i] for name, its in splits.items()} for i in (1, 2))
        return Split(together(frozen, [its.params for its in splits.values()]), train, state)

    def each(split, function):
        own = shares(split.params)
        mine = {name: Split(own[name], split.train[name], split.state[name]) for name in links}
        return own[None], {name: function(i, name, links[name], mine[name]) for i, name in enumerate(links)}

    def init(key, params, uses):
        own = shares(params)
        return gathered(
            own[None], {n: link.init(folded(key, i), own[n], uses) for i, (n, link) in enumerate(links.items())}
        )

    def apply(split, key=None):
        frozen, trees = each(split, lambda i, name, link, mine: link.apply(mine, folded(key, i)))
        return together(frozen, trees.values())

    def update(split, grads, step):
        return gathered(*each(split, lambda i, name, link, mine: link.update(mine, grads[name], step)))

    def wrap(split, fn):
        for name, mine in each(split, lambda i, name, link, mine: mine)[1].items():
            fn = links[name].wrap(mine, fn)
        return fn

    def reset(split, step):
        return each(split, lambda i, name, link, mine: link.reset(mine, step))[1]

    config = {"technique": "partition", "parts": [[plain(where), link.config] for where, link in parts.items()]}
    return Transform("partition", init, apply, update, wrap, config, reset)
