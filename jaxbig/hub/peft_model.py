"""A model as PEFT's files see it: each leaf as torch parameters, one for each layer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxbig.errors import UsageError, UserError
from jaxbig.hub.peft_files import Names
from jaxbig.site import Site
from jaxbig.tree import PyTree, paths
from jaxbig.usage import Use

_ORDER = {"lookup": 0, "product": 1, "conv": 1}


class Layer(NamedTuple):
    """One torch parameter, and the leaf here that is, or holds, it.

    Attributes:
        path: of the leaf; name: of the torch parameter.
        site: the leaf of one layer, and the use that says which of its axes are inputs.
        stacked: whether the leaf holds several layers along its first axis.
        tied: whether the leaf is looked up and multiplied by.
        biased: whether the torch module has a bias.
    """

    path: str
    name: str
    site: Site
    stacked: bool
    tied: bool
    biased: bool

    @property
    def stem(self) -> str:
        """The module's name."""
        return self.name.removesuffix(".weight")

    @property
    def kind(self) -> str:
        """product, conv, lookup, or other."""
        return self.site.use.kind


class Model:
    """Attributes: leaves: path -> leaf, those that moved too; uses; names: path -> its torch parameters."""

    def __init__(
        self, params: PyTree, uses: Mapping[str, Sequence[Use]], names: Names, moved: Mapping[str, Any] | None = None
    ):
        self.leaves, self.uses = {**paths(params), **(moved or {})}, uses
        self.names = {path: _listed(names(path)) for path in self.leaves}
        self._known = {name: (path, i) for path, its in self.names.items() for i, name in enumerate(its)}

    def of(self, name: str) -> tuple[str, int] | None:
        """The path of the leaf that is a torch parameter, and which of its layers."""
        return self._known.get(name)

    def layers(self, path: str) -> list[Layer]:
        """One `Layer` for each torch parameter of a leaf.

        Raises:
            UsageError: there is not one name for each layer.
            UserError: the leaf has axes that are neither layers nor inputs nor outputs.
        """
        leaf, uses, its = self.leaves[path], self.uses.get(path, ()), self.names[path]
        stacked = any(use.layers for use in uses)
        count = leaf.shape[0] if stacked else 1
        if len(its) != count:
            raise UsageError(f"names: there are {len(its)} names for {path}, which holds {count} layers")
        shape = tuple(leaf.shape)[stacked:]
        use = min(uses, key=lambda use: _ORDER.get(use.kind, 2), default=Use("other", (), (), shape, leaf.dtype))
        site = Site(jax.ShapeDtypeStruct(shape, leaf.dtype), use)
        if use.kind in _ORDER and site.stack:
            raise UserError(f"{path}: holds a stack of {site.stack} matrices in a layer, which no torch module has")
        tied = len({use.kind for use in uses} - {"other"}) > 1
        return [Layer(path, name, site, stacked, tied, f"{_stem(name)}.bias" in self._known) for name in its]


def _stem(name: str) -> str:
    return name.removesuffix(".weight")


def _listed(found: str | Sequence[str] | None) -> list[str]:
    return [] if found is None else [found] if isinstance(found, str) else list(found)
