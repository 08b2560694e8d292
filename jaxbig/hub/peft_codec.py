"""A method of PEFT that adapts modules one by one: what its tensors and its config mean here.

`Codec` is the engine, and each method one value of it: a table of tensors (`jaxbig.hub.peft_tensors.Part`), a function
from our arguments to PEFT's config, one back.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxbig.errors import UserError
from jaxbig.hub.peft_files import Tensors
from jaxbig.hub.peft_link import Link, named
from jaxbig.hub.peft_model import Layer, Model
from jaxbig.hub.peft_tensors import Part, from_peft, to_peft
from jaxbig.lowrank import by_path

PREFIX = "base_model.model."
Arguments = Mapping[str, Any]
Arrays = Mapping[str, Any]


def _same(arrays: Arrays, said: Mapping[str, Any], layer: Layer) -> Arrays:
    return arrays


def _nothing(link: Link, path: str) -> Arrays:
    return {}


def _as_it_is(state: Any, frozen: Mapping[str, Arrays], shared: Arrays) -> Any:
    return state


@dataclass(frozen=True)
class Codec:
    """A method.

    Attributes:
        technique: its name here; peft_type: in PEFT.
        parts: ``(layer, our arguments) -> `` the tensors of a module; keys: of all that it may have.
        says: ``(our arguments, layer, arrays of one layer) -> `` what PEFT's config says of a module.
        takes: ``(what PEFT's config says of a module, layer, its tensors by key) -> `` our arguments.
        config: PEFT's fields where nothing else is said; marks: those of them that tell the method from another of the
            same `peft_type`; only: field -> the values that we have, for reading.
        patterns: field -> the field that says it of single modules; joined: fields that gather what is said of each.
        mapped: our arguments that may be pattern -> value.
        before, after: ``(arrays of one layer, our arguments | PEFT's config, layer) -> arrays``, when writing and
            reading, where there is more to do than to turn axes.
        frozen: ``(link, path) -> `` arrays that the technique keeps in its state and PEFT in the file.
        settle: ``(state, path -> all arrays, shared arrays) -> state``, when reading.
        shared: tensors of the whole model: (name in ``state["shared"]``, key); both transposed.
        once: whether a table that is multiplied by as well may be adapted.
        renewed: fields that training changes, so that those of a config that was read do not hold.
        copied: the key of a tensor that PEFT saves a second time, under the name of a head that is the table itself.
        whole: whether PEFT saves modules whole beside it.
        prefix: of all tensors of modules.
    """

    technique: str
    peft_type: str
    parts: Callable[[Layer, Arguments], Sequence[Part]]
    keys: Sequence[str]
    says: Callable[[Arguments, Layer, Arrays], dict[str, Any]]
    takes: Callable[[Arguments, Layer, Tensors], dict[str, Any]]
    config: Mapping[str, Any]
    marks: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    patterns: Mapping[str, str] = field(default_factory=dict)
    joined: Sequence[str] = ()
    mapped: Sequence[str] = ()
    before: Callable[[Arrays, Arguments, Layer], Arrays] = _same
    after: Callable[[Arrays, Arguments, Layer], Arrays] = _same
    frozen: Callable[[Link, str], Arrays] = _nothing
    settle: Callable[[Any, Mapping[str, Arrays], Arrays], Any] = _as_it_is
    shared: Sequence[tuple[str, str]] = ()
    once: bool = False
    renewed: Sequence[str] = ()
    copied: str = ""
    whole: bool = True
    prefix: str = PREFIX

    @property
    def peft_types(self) -> tuple[str]:
        return (self.peft_type,)

    # -- out ---------------------------------------------------------------------------------------------------------

    def write(self, links: Sequence[Link], model: Model, given: bool = False) -> tuple[Tensors, dict[str, Any]]:
        """The tensors by their names, and what the config says.

        Args:
            links: all of this technique.
            model: over which they are.
            given: whether there is a config: then only what training changes of it is told.

        Raises:
            UserError: PEFT cannot express it.
        """
        tensors: Tensors = {}
        said: dict[str, dict[str, Any]] = {}
        for link in links:
            for path, trained in link.train.items():
                arguments = self._of(path, link)
                arrays = {**named(trained), **self.frozen(link, path)}
                arrays = {name: np.asarray(array) for name, array in arrays.items()}
                for i, layer in enumerate(model.layers(path)):
                    one = {name: array[i] if layer.stacked else array for name, array in arrays.items()}
                    one = self.before(one, arguments, layer)
                    parts = self._parts(layer, arguments)
                    said[self.module(layer)] = self.says(arguments, layer, one)
                    tensors |= {self.prefix + part.full(layer): to_peft(part, layer, one[part.name]) for part in parts}
            for name, key in self.shared:
                array = np.asarray(link.state["shared"][name]).T
                if not np.array_equal(tensors.setdefault(key, array), array):
                    raise UserError(f"{self.technique}: the links have other {key}, and PEFT's file holds one")
        return tensors, self._said(said, self.renewed if given else next(iter(said.values())))

    def module(self, layer: Layer) -> str:
        """The module that the config names."""
        return layer.name.rpartition(".")[0] if "{leaf}" in self.keys[0] else layer.stem

    def _of(self, path: str, link: Link) -> dict[str, Any]:
        """The arguments with those numbers that hold for one path."""
        known = link.arguments
        chosen = {
            name: by_path(self.technique, name, known[name], link.train)[path]
            for name in self.mapped if isinstance(known[name], Mapping)
        }  # fmt: skip
        return {**known, **chosen}

    def _parts(self, layer: Layer, arguments: Arguments) -> Sequence[Part]:
        if layer.tied and not self.once and arguments.get("uses", "all") == "all":
            raise UserError(
                f"{self.technique}: {layer.path} is looked up and multiplied by; PEFT adapts the look-up alone, and "
                "this both"
            )
        if layer.name.endswith(".in_proj_weight") and not self.once:
            raise UserError(
                f"{self.technique}: {layer.path} is part of torch's MultiheadAttention, which PEFT adapts otherwise; "
                "leave it out with where="
            )
        parts = self.parts(layer, arguments)
        if not parts:
            raise UserError(f"{self.technique}: {layer.path} is a {layer.kind}, and of those PEFT's tensors differ")
        return parts

    def _said(self, said: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> dict[str, Any]:
        """One config from those of the modules: what most say, and by pattern what the others do."""
        config: dict[str, Any] = {}
        for name in names:
            values = {module: its[name] for module, its in said.items()}
            if name in self.joined:
                config[name] = _gathered(list(values.values()))
                continue
            ordered = sorted(map(json.dumps, values.values()))
            most = json.loads(max(ordered, key=ordered.count))
            config[name] = most
            others = {re.escape(module): value for module, value in values.items() if value != most}
            if name in self.patterns:
                config[self.patterns[name]] = others
            elif others:
                module = next(iter(others)).replace("\\", "")
                raise UserError(
                    f"{self.technique}: PEFT's config says one {name} of all modules; here it is {most} of some and "
                    f"{next(iter(others.values()))} of {module}"
                )
        its = {"peft_type": self.peft_type, "target_modules": sorted(said)}
        return {**({"modules_to_save": None} if self.whole else {}), **self.config, **config, **its}

    # -- in ----------------------------------------------------------------------------------------------------------

    def read(self, config: Mapping[str, Any], tensors: Tensors, model: Model) -> list[Link]:
        """The links; what belongs to them is taken out of the tensors.

        Raises:
            UserError: tensors are missing or of other shapes; the technique here cannot express it.
        """
        found: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {}
        for path in model.leaves:
            if not any(self.prefix + key in tensors for name in model.names[path] for key in self._keys(name)):
                continue
            layers = model.layers(path)
            each = [self._one(self._about(config, layer), tensors, layer) for layer in layers]
            told = {json.dumps(arguments, sort_keys=True) for arguments, _ in each}
            shapes = {name: {its[name].shape for _, its in each} for name in each[0][1]}
            if len(told) > 1 or any(len(its) > 1 for its in shapes.values()):
                raise UserError(
                    f"{path}: the layers of one stack have {' and '.join(sorted(told))}, shapes {shapes}; read them "
                    "into a tree of single layers"
                )
            arrays = {name: np.stack([its[name] for _, its in each]) for name in each[0][1]}
            found[path] = each[0][0], arrays if layers[0].stacked else each[0][1]
        for name in [name for name in tensors if self.copied and name.endswith(f".{self.copied}")]:
            if any(np.array_equal(tensors[name], one) for _, its in found.values() for one in its.values()):
                del tensors[name]
        shared = {}
        for name, key in self.shared:
            if found and key not in tensors:
                raise UserError(f"{key} is missing")
            shared |= {name: tensors.pop(key).T} if found else {}
        return self._links(found, shared)

    def _keys(self, name: str) -> list[str]:
        """The names of all tensors that a torch parameter may have."""
        stem, (parent, _, leaf) = name.removesuffix(".weight"), name.rpartition(".")
        return [
            f"{parent}.{key.replace('{leaf}', leaf)}".removeprefix(".") if "{leaf}" in key else f"{stem}.{key}"
            for key in self.keys
        ]

    def _about(self, config: Mapping[str, Any], layer: Layer) -> dict[str, Any]:
        """The config with what a pattern says of this module: the first that fits the end of its name."""
        about = {**self.config, **config}
        for name, where in self.patterns.items():
            values = [
                value for pattern, value in (config.get(where) or {}).items()
                if fits(rf"(.*\.)?({pattern})", layer.stem)
            ]  # fmt: skip
            about[name] = values[0] if values else about[name]
        return about

    def _one(self, about: Mapping[str, Any], tensors: Tensors, layer: Layer) -> tuple[dict[str, Any], Any]:
        """The arguments and the arrays of one layer."""
        keys = {key: self.prefix + full for key, full in zip(self.keys, self._keys(layer.name), strict=True)}
        mine = {key: tensors.pop(full) for key, full in keys.items() if full in tensors}
        arguments = self.takes(about, layer, mine)
        parts = self._parts(layer, arguments)
        missing = [part for part in parts if part.key not in mine]
        if missing:
            raise UserError(
                f"{self.prefix}{missing[0].full(layer)} is missing: of {layer.path} only some layers or parts are there"
            )
        over = set(mine) - {part.key for part in parts}
        if over:
            raise UserError(f"{keys[min(over)]} is no tensor of {self.technique} as it is here")
        arrays = {}
        for part in parts:
            try:
                arrays[part.name] = from_peft(part, layer, mine[part.key])
            except ValueError as error:
                raise UserError(f"{self.prefix}{part.full(layer)} {error}") from None
        return arguments, dict(self.after(arrays, about, layer))

    def _links(self, found: Mapping[str, tuple[dict[str, Any], Arrays]], shared: Arrays) -> list[Link]:
        """Paths of equal arguments are one link; those that may differ by path are told by it."""
        groups: dict[str, list[str]] = {}
        for path, (arguments, _) in found.items():
            rest = {name: value for name, value in arguments.items() if name not in self.mapped}
            groups.setdefault(json.dumps(rest, sort_keys=True), []).append(path)
        links = []
        for mine in groups.values():
            arguments = dict(found[mine[0]][0])
            for name in self.mapped:
                arguments[name] = _shortest({path: found[path][0][name] for path in mine})
            arguments |= {"technique": self.technique, "where": [re.escape(path) for path in mine]}
            arrays = {path: found[path][1] for path in mine}
            settle = lambda state, arrays=arrays: self.settle(state, arrays, shared)  # noqa: E731
            links.append(Link(arguments, arrays, settle))
        return links


def refused(codec: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says that a method here cannot do."""
    of = lambda value: value.lower() if isinstance(value, str) else value or None  # noqa: E731
    return {
        name: config[name]
        for name, allowed in codec.only.items()
        if name in config and of(config[name]) not in [of(value) for value in allowed]
    }


def _gathered(values: list[Any]) -> Any:
    """Lists joined and sorted; masks by name put together, None where they mask nothing."""
    if isinstance(values[0], Mapping):
        masks = {key: mask for its in values for key, mask in its.items()}
        return None if all(all(mask) for mask in masks.values()) else masks
    return sorted({value for its in values for value in its})


def _shortest(values: Mapping[str, Any]) -> Any:
    """One number where all are equal, else pattern -> number."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return {re.escape(path): value for path, value in values.items()}


def fits(pattern: str, name: str) -> bool:
    r"""Whether a pattern of PEFT's config is a module's whole name.

    Example:
        >>> fits(r"layers\.\d\.up", "layers.2.up"), fits("up", "layers.2.up")
        (True, False)
    """
    try:
        return bool(re.fullmatch(pattern, name))
    except re.error as error:
        raise UserError(f"its config has {pattern!r}, which is no regular expression: {error}") from None


def by_kind(kinds: Mapping[str, Sequence[Part]]) -> Callable[[Layer, Arguments], Sequence[Part]]:
    """`Codec.parts` of a method whose tensors depend on how the leaf is used, and on nothing else."""
    return lambda layer, arguments: kinds.get(layer.kind, ())


def keys_of(kinds: Mapping[str, Sequence[Part]]) -> list[str]:
    """`Codec.keys` of such a method."""
    return sorted({part.key for parts in kinds.values() for part in parts})
