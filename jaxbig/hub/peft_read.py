"""From PEFT's files to a transform and its split."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UserError
from jaxbig.hub.peft_files import Adapter, Names, Tensors, by_module, modules, read_files, some
from jaxbig.site import Site, sites
from jaxbig.transform import chain
from jaxbig.tree import PyTree, paths
from jaxbig.tune.full import full
from jaxbig.tune.lora import lora


def read_peft(folder: str | Path, params: PyTree, uses: Any, names: Names) -> Adapter:
    """An adapter that PEFT saved, as `lora` (and `full` for PEFT's ``modules_to_save``) over a base.

    Args:
        folder: holds the two files.
        params: the base's parameters, arrays or Weights.
        uses: what `jaxbig.usage.usage` says of the model.
        names: path -> torch parameter, or one for each layer of a stack; None for leaves that torch does not have.

    Returns:
        the adapter, in float32 (float64 over a float64 base) whatever the file holds; a table that is tied to the head
        is adapted in its look-up alone, as PEFT does it.

    Raises:
        UserError: a file is missing or damaged; the adapter is no plain LoRA; tensors are left over or missing.

    Example: see `jaxbig.hub.peft_write.write_peft`.
    """
    config, tensors = read_files(Path(folder))
    given = {path: names(path) for path in paths(params)}
    found: dict[str, Tensors] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    saved: Tensors = {}
    for path, name in given.items():
        its, layers = modules(name), not isinstance(name, str)
        pairs = [_pair(tensors, module) for module in its]
        if any(pair is not None for pair in pairs):
            whole = [pair for pair in pairs if pair is not None]
            if len(whole) < len(its):
                raise UserError(f"{folder}: only some layers of {path} are adapted: {its[0]} ... {its[-1]}")
            found[path] = {part: _joined([pair[part] for pair in whole], path, layers) for part in ("a", "b")}
            ranks[path] = whole[0]["a"].shape[0]
            alphas[path] = _one([by_module(config, module) for module in its], path)
        elif its and all(module in tensors for module in its):
            saved[path] = _joined([tensors.pop(module) for module in its], path, layers)
    if tensors:
        raise UserError(f"{folder}: {some(tensors)} belong to no leaf of the model: `names` does not lead to them")
    if not found:
        raise UserError(f"{folder}: no tensor belongs to a leaf of the model: `names` leads elsewhere")
    return _assembled(config, params, uses, (found, ranks, alphas, saved))


def _pair(tensors: Tensors, module: str) -> Tensors | None:
    """PEFT's A [r, ...] and B [..., r] of a module, taken out of the tensors."""
    stem = module.removesuffix(".weight")
    for a, b in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")):
        if f"{stem}.{a}" in tensors and f"{stem}.{b}" in tensors:
            return {"a": tensors.pop(f"{stem}.{a}"), "b": tensors.pop(f"{stem}.{b}")}
    return None


def _one(values: list[float], path: str) -> float:
    if len(set(values)) > 1:
        raise UserError(
            f"{path}: the layers of one stack have the alphas {values}; read them into a tree of single layers"
        )
    return float(values[0])


def _joined(arrays: list[np.ndarray], path: str, layers: bool) -> np.ndarray:
    if len({array.shape for array in arrays}) > 1:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise UserError(
            f"{path}: the layers of one stack have the shapes {shapes}; read them into a tree of single layers"
        )
    return np.stack(arrays) if layers else arrays[0]


def _assembled(config, params, uses, parts) -> Adapter:
    found, ranks, alphas, saved = parts
    leaves, known = paths(params), sites("read_peft", _exactly(found), params, uses)
    tied = [path for path in found if len({use.kind for use in uses[path] if use.kind != "other"}) > 1]
    rest = [path for path in found if path not in tied]
    links = [
        lora(
            _shortest({path: ranks[path] for path in mine}), _shortest({path: alphas[path] for path in mine}),
            _exactly(mine), config.get("lora_dropout", 0.0), how, bool(config.get("use_rslora")),
        )
        for mine, how in ((rest, "all"), (tied, "lookup")) if mine
    ]  # fmt: skip
    links += [full(_exactly(saved))] if saved else []
    transform = links[0] if len(links) == 1 else chain(*links)
    split = transform.init(jax.random.key(0), params, uses)
    ours = {path: _ours(found[path], known[path], leaves[path]) for path in found}
    whole = {path: _whole(array, leaves[path], uses[path]) for path, array in saved.items()}
    values = {**ours, **whole}
    fill = lambda train: {path: _like(values[path], old, path) for path, old in train.items()}  # noqa: E731
    train = fill(split.train) if len(links) == 1 else {name: fill(part) for name, part in split.train.items()}
    return Adapter(transform, split._replace(train=train), config)


def _exactly(found: Any) -> list[str]:
    return [re.escape(path) for path in found]


def _shortest(by_path: Mapping[str, Any]) -> Any:
    """One number where all are equal, else pattern -> number."""
    values = set(by_path.values())
    return values.pop() if len(values) == 1 else {re.escape(path): value for path, value in by_path.items()}


def _like(new: Any, old: Any, path: str) -> Any:
    def one(array, was):
        if array.shape != was.shape:
            raise UserError(f"{path}: the adapter's shape is {array.shape}, the model wants {was.shape}")
        return jnp.asarray(array, was.dtype)

    return jax.tree.map(one, new, old)


def _ours(pair: Mapping[str, np.ndarray], site: Any, leaf: Any) -> dict[str, np.ndarray]:
    """a [*stack, *in, r] and b [*stack, r, *out] from PEFT's A and B, stacked."""
    a, b, n = pair["a"], pair["b"], len(site.stack)
    rank = a.shape[n]
    if site.use.kind == "conv":  # [r, I, ...] and [O, r, 1, ...]; ours [..., I, r] and [r, O]
        up = b.reshape(b.shape[: n + 2])
        return {"a": np.moveaxis(a, (n, n + 1), (-1, -2)), "b": np.swapaxes(up, -1, -2)}
    down, up = np.swapaxes(a, -1, -2), np.swapaxes(b, -1, -2)
    return {"a": down.reshape(*site.stack, *site.inputs, rank), "b": up.reshape(*site.stack, rank, *site.outputs)}


def _whole(array: np.ndarray, leaf: Any, uses: Any) -> np.ndarray:
    """A torch parameter in the leaf's axes: kernels are [O, I] there, convolutions [O, I, h, w]."""
    use = min(uses, key=lambda use: use.kind != "lookup", default=None)
    if use is not None and use.kind == "product":
        site, n = Site(leaf, use), len(leaf.shape)
        order = [i + n for i in range(-n, 0) if i not in use.in_axes + use.out_axes]
        order += [i + n for i in (*use.out_axes, *use.in_axes)]
        parts = array.reshape(*site.stack, *site.outputs, *site.inputs)
        return np.transpose(parts, np.argsort(order))
    if use is not None and use.kind == "conv":
        n = len(Site(leaf, use).stack)
        return np.moveaxis(array, (n, n + 1), (-1, -2))
    return array.reshape(leaf.shape)
