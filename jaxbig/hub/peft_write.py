"""From a transform and its split to PEFT's files."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxbig.errors import UsageError, UserError
from jaxbig.hub.peft_codecs import of_techniques
from jaxbig.hub.peft_files import VERSION, Adapter, Names, write_files
from jaxbig.hub.peft_leaves import FULL
from jaxbig.hub.peft_link import Link
from jaxbig.hub.peft_model import Model
from jaxbig.transform import numbered
from jaxbig.usage import Use

# What every config of PEFT has.
_CONFIG = {
    "task_type": None, "auto_mapping": None, "peft_version": VERSION, "base_model_name_or_path": None, "revision": None,
    "inference_mode": True,
}  # fmt: skip


def write_peft(folder: str | Path, adapter: Adapter, uses: Mapping[str, tuple[Use, ...]], names: Names) -> list[str]:
    """Saves an adapter as PEFT does: ``peft.PeftModel.from_pretrained(model, folder)`` reads it.

    Args:
        folder: made where it is not there; each file is replaced whole or not at all.
        adapter: its transform is a technique that PEFT has too, or a chain or partition of several of one kind, with
            `full` for modules that are saved whole; what rewrites its base becomes LoRA by `jaxbig.as_lora` first. Its
            config is more of ``adapter_config.json`` (such as ``task_type``, which PEFT needs for prompts); one with a
            ``peft_type``, as `read_peft` gives it, is written as it is, but for AdaLoRA's ``rank_pattern``.
        uses: what `jaxbig.usage.usage` says of the model.
        names: path -> torch parameter, or a list of them, one for each layer of a stack.

    Returns:
        the names of the tensors, which have the dtypes of what is trained.

    Raises:
        UsageError: PEFT has no such technique; `names` has no name for a leaf, or not one for each layer.
        UserError: PEFT cannot express this one; `jaxbig.hub.peft_codecs` has the list.

    Example:
        >>> import jax, tempfile, jax.numpy as jnp
        >>> from jaxbig.hub.peft_read import read_peft
        >>> from jaxbig.tune.lora import lora
        >>> from jaxbig.usage import usage
        >>> params, x = {"up": {"kernel": jnp.ones((4, 3))}}, jnp.ones((2, 4))
        >>> uses = usage(lambda p, x: jnp.tanh(x @ p["up"]["kernel"]), params, x)
        >>> names = lambda path: path.replace("/kernel", ".weight")
        >>> technique = lora(rank=2, alpha=4.0, where="up/kernel")
        >>> adapter = Adapter(technique, technique.init(jax.random.key(0), params, uses), {"task_type": None})
        >>> folder = tempfile.mkdtemp()
        >>> write_peft(folder, adapter, uses, names)
        ['base_model.model.up.lora_A.weight', 'base_model.model.up.lora_B.weight']
        >>> read_peft(folder, params, uses, names).transform.config["alpha"]
        4.0

    Reference: PEFT 0.21, ``peft.utils.save_and_load``.
    """
    links = list(_links(adapter.transform.config, adapter.split.train, adapter.split.state))
    whole = [link for link in links if link.arguments["technique"] == "full"]
    adapting = [link for link in links if link.arguments["technique"] != "full"]
    codec = of_techniques([link.arguments["technique"] for link in adapting])
    moved = {path: its for link in links for path, its in link.train.items() if not isinstance(its, Mapping)}
    model = Model(adapter.split.params, uses, names, moved)
    given = adapter.config.get("peft_type")
    if given and given not in codec.peft_types:
        raise UsageError(f"write_peft: the config is of {given}, and this is {codec.technique}")
    tensors, said = codec.write(adapting, model, bool(given))
    if whole and not codec.whole:
        raise UserError(f"write_peft: beside {codec.technique} PEFT saves no module whole, and full trains some")
    if whole:
        more, their = dataclasses.replace(FULL, prefix=codec.prefix).write(whole, model)
        tensors |= more
        said["modules_to_save"] = their["target_modules"]
    config = adapter.config | {name: said[name] for name in codec.renewed} if given else _CONFIG | said | adapter.config
    write_files(Path(folder), config, tensors)
    return sorted(tensors)


def _links(config: Mapping[str, Any], train: Any, state: Any):
    """Every technique with what it trains, those of chains and partitions too."""
    name = config.get("technique")
    if name not in ("chain", "partition"):
        yield Link(dict(config), train, state)
        return
    # Links of one name are numbered; the dictionary's own order is lost wherever jax has mapped over it.
    inner = config["links"] if name == "chain" else [link for _, link in config["parts"]]
    for key, link in zip(numbered([link["technique"] for link in inner]), inner, strict=True):
        yield from _links(link, train[key], state[key])
