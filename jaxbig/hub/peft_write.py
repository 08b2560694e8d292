"""From a transform and its split to PEFT's files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbig import atomic
from jaxbig.errors import UsageError
from jaxbig.hub.peft_files import PREFIX, Adapter, Names, Tensors, modules
from jaxbig.lowrank import by_path
from jaxbig.site import Site
from jaxbig.transform import Split, Transform
from jaxbig.tree import paths
from jaxbig.usage import Use


def write_peft(folder: str | Path, adapter: Adapter, uses: Mapping[str, tuple[Use, ...]], names: Names) -> list[str]:
    """Saves LoRA as PEFT does: ``peft.PeftModel.from_pretrained(model, folder)`` reads it.

    Args:
        folder: made where it is not there; each file is replaced whole or not at all.
        adapter: its transform is `lora`, or a chain of it with `full` for modules that are saved whole; what rewrites
            its base becomes LoRA by `jaxbig.as_lora` first. Its config is more of ``adapter_config.json`` (such as
            ``task_type``); one with a ``peft_type``, as `read_peft` gives it, is written as it is.
        uses: what `jaxbig.usage.usage` says of the model.
        names: path -> torch parameter, or a list of them, one for each layer of a stack.

    Returns:
        the names of the tensors.

    Raises:
        UsageError: the transform is no LoRA; `names` has no name for a leaf, or not one for each layer.

    Example:
        >>> import tempfile, jax.numpy as jnp
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
    from safetensors.numpy import save

    tensors: Tensors = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    links = _links(adapter.transform, adapter.split)
    bases = paths(adapter.split.params)
    for link, train in links:
        if link["technique"] == "full":
            for path, array in train.items():
                tensors |= _whole(np.asarray(array), uses[path], _named(names, path, uses[path]))
            continue
        alpha = by_path("lora", "alpha", link["alpha"], train)
        for path, parts in train.items():
            site = Site(bases[path], min(uses[path], key=lambda use: use.kind != "lookup"))
            its, rank = _named(names, path, uses[path]), parts["a"].shape[-1]
            for i, module in enumerate(its):
                stem = module.removesuffix(".weight")
                layer = {part: np.asarray(array[i] if site.stack else array) for part, array in parts.items()}
                tensors |= {f"{stem}.{name}": array for name, array in _pair(layer, site).items()}
                ranks[stem], alphas[stem] = rank, rank if alpha[path] is None else alpha[path]
    tensors = {PREFIX + name: np.ascontiguousarray(array) for name, array in tensors.items()}
    config = dict(adapter.config)
    if "peft_type" not in config:
        whole = [path for link, train in links if link["technique"] == "full" for path in train]
        saved = {name.rpartition(".")[0] for path in whole for name in _named(names, path, uses[path])}
        config = _config([link for link, _ in links], ranks, alphas, saved) | config
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write(folder / "adapter_model.safetensors", save(tensors, {"format": "pt"}))
    atomic.write(folder / "adapter_config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    return sorted(tensors)


def _links(transform: Transform, split: Split) -> list[tuple[Mapping[str, Any], Any]]:
    """(config, train) of each link."""
    config = transform.config
    configs = config["links"] if config.get("technique") == "chain" else [config]
    if any(link.get("technique") not in ("lora", "full") for link in configs) or not any(
        link.get("technique") == "lora" for link in configs
    ):
        told = ", ".join(str(link.get("technique")) for link in configs)
        raise UsageError(f"write_peft: {told} is no LoRA; PEFT's files hold lora, and full beside it")
    if len({link["stabilised"] for link in configs if link["technique"] == "lora"}) > 1:
        raise UsageError("write_peft: only some of these are stabilised, and PEFT's config says it of all")
    if config.get("technique") != "chain":
        return [(config, split.train)]
    # Chains number links of one name; the dictionary's own order is lost wherever jax has mapped over it.
    seen = [config["technique"] for config in configs]
    keys = [name + (f"_{seen[:i].count(name)}" if name in seen[:i] else "") for i, name in enumerate(seen)]
    return [(link, split.train[key]) for link, key in zip(configs, keys, strict=True)]


def _named(names: Names, path: str, uses: tuple[Use, ...]) -> list[str]:
    found, layers = modules(names(path)), max((use.shape[0] if use.layers else 1 for use in uses), default=1)
    if len(found) != layers:
        raise UsageError(f"write_peft: `names` has {len(found)} names for {path}, which holds {layers} layers")
    return found


def _pair(parts: Mapping[str, np.ndarray], site: Site) -> Tensors:
    """PEFT's tensors of one layer: A [r, I] and B [O, r], of a convolution [r, I, ...] and [O, r, 1, ...]."""
    a, b = parts["a"], parts["b"]
    if site.use.kind == "conv":
        ones = (1,) * (a.ndim - 2)
        return {"lora_A.weight": np.moveaxis(a, (-1, -2), (0, 1)), "lora_B.weight": b.T.reshape(*b.T.shape, *ones)}
    down, up = a.reshape(-1, a.shape[-1]).T, b.reshape(b.shape[0], -1).T
    if site.use.kind == "lookup":
        return {"lora_embedding_A": down, "lora_embedding_B": up}
    return {"lora_A.weight": down, "lora_B.weight": up}


def _whole(array: np.ndarray, uses: tuple[Use, ...], its: list[str]) -> Tensors:
    """A leaf as torch holds it: kernels are [O, I], convolutions [O, I, h, w]."""
    layers = list(array) if any(use.layers for use in uses) else [array]
    use = min(uses, key=lambda use: use.kind != "lookup")

    def turned(layer: np.ndarray) -> np.ndarray:
        if use.kind == "product":
            order = (*use.out_axes, *use.in_axes)
            site = Site(jax.ShapeDtypeStruct(layer.shape, layer.dtype), use)
            return np.transpose(layer, [i + layer.ndim for i in order]).reshape(site.matrix[1], site.matrix[0])
        return np.moveaxis(layer, (-1, -2), (0, 1)) if use.kind == "conv" else layer

    return dict(zip(its, map(turned, layers), strict=True))


def _config(links: list[Mapping[str, Any]], ranks: dict, alphas: dict, saved: set[str]) -> dict[str, Any]:
    adapted = next(link for link in links if link["technique"] == "lora")
    rank, alpha = (max(set(of.values()), key=list(of.values()).count) for of in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(stem): r for stem, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(stem): value for stem, value in alphas.items() if value != alpha},
        "target_modules": sorted(ranks),
        "modules_to_save": sorted(saved) or None,
        "lora_dropout": adapted["dropout"],
        "use_rslora": adapted["stabilised"],
        "bias": "none",
        "inference_mode": True,
    }
