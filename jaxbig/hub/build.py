"""From a folder to a module and its leaves' shapes, by what headers and ``config.json`` say: no weights are read."""

import contextlib
import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
from flax.errors import FlaxError
from flax.traverse_util import unflatten_dict

from jaxbig.errors import UsageError, UserError
from jaxbig.hub import config as configs
from jaxbig.hub.folder import CONFIG, read_json, tensors_of
from jaxbig.hub.plan import Named, named
from jaxbig.hub.safetensors_file import Stored
from jaxbig.models.families import family_of
from jaxbig.models.family import Family, Tensor
from jaxbig.tree import paths

# What Python, jax and flax raise where a config's fields do not fit each other.
_ODD = (
    TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError, RecursionError,
    einops.EinopsError, FlaxError,
)  # fmt: skip


class Opened(NamedTuple):
    """Attributes: folder, or the one file that holds all; config: ``config.json``, or what that file says in its place;
    family: the model's; stored: the files' tensors by name."""

    folder: Path
    config: dict[str, Any]
    family: Family
    stored: dict[str, Stored]

    @property
    def where(self) -> Path:
        """What the config was read from, for messages."""
        return self.folder if self.folder.is_file() else self.folder / CONFIG


class Built(NamedTuple):
    """A module that has no parameters yet.

    Attributes:
        module: the linen module.
        task: of its head.
        inputs: shapes that it can be called with.
        shapes: path -> shape of each parameter.
        leaves: path -> its tensors.
        config: ``config.json`` as it is for this task and head.
    """

    module: nn.Module
    task: str
    inputs: tuple[Any, ...]
    shapes: dict[str, jax.ShapeDtypeStruct]
    leaves: dict[str, Named]
    config: dict[str, Any]


def folder_of(path: str | Path, online: bool = False) -> Path:
    """The folder that a path means, downloaded first where that is asked for.

    Raises:
        UsageError: nothing is there, or it is a file.
        UserError: the download fails.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UsageError(f"{path}: is a file, and no GGUF file; give the folder with config.json")
    if not online:
        raise UsageError(
            f"{path}: no such folder; give one, or pass online=True to download it from the Hugging Face hub"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError('online=True needs the package huggingface_hub: pip install "jaxbig[online]"') from error
    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model"]
    try:
        return Path(snapshot_download(str(path), allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{path}: cannot be downloaded from the Hugging Face hub: {error}") from error


def opened(folder: Path, family: Family | None = None) -> Opened:
    """What a folder's headers and config say.

    Args:
        folder: of a published model.
        family: the model's; None: by the config's ``model_type``.

    Returns:
        config, family and tensors.

    Raises:
        UserError: a file is missing or damaged, or jaxbig has no such family.
    """
    config = read_json(folder / CONFIG)
    with _at(folder / CONFIG):
        family = family_of(config) if family is None else family
        config = config if family.alone is None else dict(family.alone(config))
    stored = tensors_of(folder)
    configs.check(config, folder / CONFIG, stored)
    if family.settled is not None:
        config = dict(family.settled(config, stored))
    return Opened(folder, config, family, stored)


def build(
    at: Opened, task: str | None = None, num_classes: int | None = None, options: Mapping[str, Any] | None = None
) -> Built:
    """The module for a task.

    Args:
        at: the folder.
        task: of the head; None: the one that the config names.
        num_classes: of the head; None: as the config says.
        options: of the family's module.

    Returns:
        the module and its leaves.

    Raises:
        UsageError: the family has no such task or option.
        UserError: the config describes no model.
    """
    family, where, options = at.family, at.where, dict(options or {})
    task = configs.task_of(at.config, family, where) if task is None else task
    config = configs.for_task(at.config, family, task, num_classes)
    if num_classes is not None:
        options["num_classes"] = num_classes
    try:
        with _at(where):
            plain = family.module(config, task)
            body = _body(family, config)
            module = _with(plain, partial(family.module, config, task), options)
            inputs = family.example(module)
            variables = jax.eval_shape(lambda *inputs: module.init(jax.random.key(0), *inputs), *inputs)
    except _ODD as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{where}: describes no {family.name} that can be built ({told:.200}); mend it") from error
    shapes = paths(variables["params"])
    leaves = named(family.tensors(module), shapes, body)
    return Built(module, task, inputs, shapes, leaves, config)


@contextlib.contextmanager
def _at(where: Path) -> Iterator[None]:
    """Errors of families speak of ``config.json``; this says which one."""
    try:
        yield
    except UsageError:
        raise
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('config.json: ')}") from error


def _fields(module: nn.Module) -> set[str]:
    """The fields of a module, and those that all modules have which it is made of: options of a family reach those."""
    own = {field.name for field in dataclasses.fields(module)}
    parts = [_fields(part) for name in own - {"parent"} if isinstance(part := getattr(module, name), nn.Module)]
    return (own | (set.intersection(*parts) if parts else set())) - {"parent", "name"}


def _body(family: Family, config: Mapping[str, Any]) -> list[Tensor] | None:
    """The tensors of the model without a head, also as classes name them that hold its parts without the prefix."""
    if "features" not in family.architectures.values():
        return None
    tensors = family.tensors(family.module(config, "features"))
    return [*tensors, *(each._replace(name=each.name.removeprefix(family.prefix + ".")) for each in tensors)]


def _with(module: nn.Module, make: Callable[..., nn.Module], options: Mapping[str, Any]) -> nn.Module:
    """The module with options, of which it has to have the fields."""
    known = _fields(module)
    for name in sorted(options.keys() - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(known))}"
        raise UsageError(f"{type(module).__name__} has no option {name!r}; {hint}")
    try:
        return make(**options)
    except TypeError as error:  # one that config.json decides
        raise UsageError(f"{type(module).__name__}: {error}; change config.json instead") from error


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of leaves by path.

    Example:
        >>> nested({"a/b": 1, "a/c": 2})
        {'a': {'b': 1, 'c': 2}}
    """
    return unflatten_dict({tuple(path.split("/")): leaf for path, leaf in leaves.items()})
