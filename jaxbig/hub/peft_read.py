"""From PEFT's files to a transform and its split."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbig.errors import UserError
from jaxbig.hub.peft_codec import PREFIX
from jaxbig.hub.peft_codecs import of_config
from jaxbig.hub.peft_files import Adapter, Names, Tensors, read_files, some
from jaxbig.hub.peft_leaves import FULL
from jaxbig.hub.peft_link import Link, built, filled
from jaxbig.hub.peft_model import Model
from jaxbig.hub.peft_tensors import Part, from_peft
from jaxbig.transform import Split, Transform, chain, numbered
from jaxbig.tree import PyTree
from jaxbig.weight import materialise


def read_peft(folder: str | Path, params: PyTree, uses: Any, names: Names) -> Adapter:
    """An adapter that PEFT saved, as the technique that it is here (and `full` for ``modules_to_save``) over a base.

    Args:
        folder: holds the two files.
        params: the base's parameters, arrays or Weights.
        uses: what `jaxbig.usage.usage` says of the model.
        names: path -> torch parameter, or one for each layer of a stack; None for leaves that torch does not have.

    Returns:
        the adapter, each array in the dtype of the file (float64 where JAX has it enabled); modules of other numbers
        than the rest are links of their own in a chain. A table that is tied to the head LoRA adapts in its look-up
        alone, as PEFT does.

    Raises:
        UserError: a file is missing or damaged; the method is none here, or says what ours cannot do
            (`jaxbig.hub.peft_codecs` has the list); tensors are left over, missing or of other shapes.

    Example: see `jaxbig.hub.peft_write.write_peft`.
    """
    folder = Path(folder)
    config, tensors = read_files(folder)
    codec, model = of_config(folder, config), Model(params, uses, names)
    try:
        links = codec.read(config, tensors, model)
        nothing = not links
        _drop_base(tensors, model)
        links += dataclasses.replace(FULL, prefix=codec.prefix).read({}, tensors, model)
        if tensors:
            raise UserError(f"{some(tensors)} belong to no leaf of the model: `names` does not lead to them")
        if nothing:
            raise UserError("no tensor belongs to a leaf of the model: `names` leads elsewhere")
        return Adapter(*_over(links, params, uses), config)
    except UserError as error:
        raise type(error)(f"{folder}: {error}") from error


def _drop_base(tensors: Tensors, model: Model) -> None:
    """PEFT saves the base's own table beside its adapter; one that is not the model's is an error."""
    for key in [key for key in tensors if key.endswith(".base_layer.weight")]:
        name = key.removeprefix(PREFIX).replace(".base_layer", "")
        path, i = model.of(name) or ("", 0)
        if not path:
            continue
        layer, leaf = model.layers(path)[i], materialise(model.leaves[path])
        ours = np.asarray(leaf[i] if layer.stacked else leaf)
        if not np.array_equal(from_peft(Part("", "", "W", "W"), layer, tensors.pop(key)).astype(ours.dtype), ours):
            raise UserError(f"{key} is another than {path} of the model: the adapter belongs to another base")


def _over(links: list[Link], params: PyTree, uses: Any) -> tuple[Transform, Split]:
    transforms = [built(link) for link in links]
    whole = transforms[0] if len(links) == 1 else chain(*transforms)
    params, train, state = whole.init(jax.random.key(0), params, uses)
    if len(links) == 1:
        return whole, Split(params, filled(links[0], train), links[0].state(state))
    for name, link in zip(numbered([transform.name for transform in transforms]), links, strict=True):
        train, state = {**train, name: filled(link, train[name])}, {**state, name: link.state(state[name])}
    return whole, Split(params, train, state)
