"""Models by name, for the command line: a function of parameters, their shapes and an example's, nothing allocated."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbig.errors import UsageError

NAMES = "vit-{ti,s,b,l,h}PATCH (vit-b16), resnet{18,34,50}, a published model's config.json, or FILE.py:FUNCTION"


class Model(NamedTuple):
    """Attributes: name; fn: ``(params, *inputs) -> result``; params: shapes; inputs: shapes of one batch."""

    name: str
    fn: Callable
    params: Any
    inputs: tuple[Any, ...]


def model(spec: str, batch: int = 1, image: int = 224) -> Model:
    """A model by its name, in shapes alone.

    Args:
        spec: see `NAMES`. Of a ``config.json`` the layers are scanned, the head is that of its first architecture, and
            inputs are its family's example. FUNCTION takes the batch size and returns a linen module and a tuple of its
            inputs, arrays or `jax.ShapeDtypeStruct`; the file is imported, as `jaxbig run` does.
        batch: number of rows.
        image: height and width of images.

    Returns:
        the model.

    Raises:
        UsageError: no such model, file or function, or the function returns something else.
        UserError: a ``config.json`` that is damaged, or whose family is unknown.

    Example:
        >>> found = model("vit-ti16")
        >>> from jaxbig.tree import paths
        >>> sum(leaf.size for leaf in paths(found.params).values()), found.inputs[0].shape
        (5717416, (1, 224, 224, 3))
    """
    if spec.endswith(".json"):
        return _of_config(Path(spec), batch)
    if ":" in spec:
        return _of_file(spec, batch)
    pixels = jax.ShapeDtypeStruct((batch, image, image, 3), jnp.float32)
    if found := re.fullmatch(r"vit-(ti|s|b|l|h)(\d+)", spec.lower()):
        from jaxbig.models.vit import vit

        return _shapes(spec, vit(found[1].capitalize(), int(found[2]), num_classes=1000), (pixels,))
    if found := re.fullmatch(r"resnet-?(18|34|50)", spec.lower()):
        from jaxbig.models.resnet import resnet

        return _shapes(spec, resnet(int(found[1]), num_classes=1000), (pixels,))
    raise UsageError(f"no model is called {spec!r}; there are {NAMES}")


def _of_config(path: Path, batch: int) -> Model:
    from jaxbig.hub.folder import read_json
    from jaxbig.models.families import family_of

    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    config = read_json(path)
    family = family_of(config)
    task = family.architectures.get((config.get("architectures") or [""])[0], "features")
    module = family.module(config, task, scan_layers=True)
    inputs = (jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype) for leaf in family.example(module))
    return _shapes(family.name, module, tuple(inputs))


def _of_file(spec: str, batch: int) -> Model:
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"{file}: no such Python file; a model of yours is FILE.py:FUNCTION")
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None:
        raise UsageError(f"{file}: cannot be imported")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise UsageError(f"{file}: has no function {name!r}")
    made = getattr(module, name)(batch)
    if not isinstance(made, tuple) or len(made) != 2 or not hasattr(made[0], "apply") or not isinstance(made[1], tuple):
        raise UsageError(f"{spec}: has to return a linen module and a tuple of its inputs")
    return _shapes(name, made[0], made[1])


def _shapes(name: str, module: Any, inputs: tuple[Any, ...]) -> Model:
    variables = dict(jax.eval_shape(lambda *inputs: module.init(jax.random.key(0), *inputs), *inputs))
    params = variables.pop("params")

    def fn(params, *inputs):
        filled = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
        return module.apply({"params": params, **filled}, *inputs)

    return Model(name, fn, params, inputs)
