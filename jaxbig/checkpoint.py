"""Checkpoints: trees of arrays on disk, bit for bit. The only module that imports orbax.

A folder of checkpoints holds one folder a step::

    step_00000012/train/         the leaves of an entry of the tree that was saved apart, written by orbax
    step_00000012/arrays/        all other leaves
    step_00000012/manifest.json  written last: paths, shapes and dtypes, checksums, versions, your own entries

A step without a manifest is not complete and does not exist for `steps` and `restore`; so a program that is killed
while it saves loses nothing that was saved before.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxbig import manifest as manifests
from jaxbig.errors import UserError
from jaxbig.manifest import best, find, latest, place_of, steps
from jaxbig.storage import encode, from_stored, stored_shape
from jaxbig.tree import PyTree, path_of

VERSIONS = {"jax": jax.__version__, "orbax-checkpoint": ocp.__version__, "numpy": np.__version__}
REST = "arrays"


class Snapshot(NamedTuple):
    """A tree as it was at one moment: what later changes to it, or donation, cannot reach.

    Attributes:
        records: what the manifest says of each leaf.
        arrays: name -> array, on the host where one process holds it whole.
    """

    records: list[dict[str, Any]]
    arrays: dict[str, Any]


def snapshot(tree: PyTree, apart: Sequence[str] = ()) -> Snapshot:
    """Copies a tree's arrays to the host.

    Args:
        tree: pytree of arrays of any dtype: 4-bit integers, bfloat16, float8, typed PRNG keys, Weights, None.
        apart: names of the tree's top-level entries that get a folder of their own.

    Returns:
        the snapshot.

    Raises:
        UserError: a leaf is no array.
    """
    records, arrays = encode(tree)
    for record in records:
        head = record["path"].split("/")[0]
        record["part"] = head if head in apart else REST
    # A view of a device's memory would change under the next step, which may reuse that memory.
    own = {n: np.array(a) if getattr(a, "is_fully_addressable", True) else a for n, a in arrays.items()}
    return Snapshot(records, own)


def save(
    folder: str | Path,
    step: int,
    tree: PyTree,
    manifest: Mapping[str, Any] | None = None,
    keep_last: int | None = None,
    *,
    keep_best: str | None = None,
    apart: Sequence[str] = (),
) -> Path:
    """Write a checkpoint; it is on disk, whole, when this returns.

    Args:
        folder: folder of checkpoints; made if it is not there.
        step: number of the step, not negative. A complete checkpoint of that step is replaced.
        tree: pytree of arrays of any dtype, see `snapshot`; or a `Snapshot`.
        manifest: JSON-able entries to keep beside the arrays, such as the configuration; see `read_manifest`.
        keep_last: how many complete checkpoints to keep, the newest ones; None: all.
        keep_best: a goal such as ``max:val_accuracy``: the checkpoint whose ``manifest["scores"]`` is best is kept too.
        apart: names of the tree's top-level entries that `restore` shall be able to read alone.

    Returns:
        the checkpoint's folder.

    Raises:
        UserError: a leaf is no array, the manifest is not JSON-able, `keep_last` < 1, or the disk refuses.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = save(folder, 3, {"w": jnp.ones(2, jnp.bfloat16)}, {"seed": 0})
        >>> restore(folder)["w"].dtype.name, read_manifest(folder)["seed"], steps(folder)
        ('bfloat16', 0, [3])
    """
    if keep_last is not None and keep_last < 1:
        raise UserError(f"checkpoint: keep_last={keep_last}; keep at least 1")
    target = place_of(folder, step)
    records, arrays = tree if isinstance(tree, Snapshot) else snapshot(tree, apart)
    whole = {"format": manifests.FORMAT, "step": step, "versions": VERSIONS, "user": dict(manifest or {})}
    whole["leaves"] = records
    try:
        json.dumps(whole)
    except (TypeError, ValueError) as error:
        raise UserError(f"{target}: the manifest cannot be written as JSON: {error}") from error
    try:
        _write(target, records, arrays, whole)
        manifests.prune(folder, keep_last, keep_best)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{target}: cannot be written ({reason}); make room or choose another folder") from error
    return target


def _write(target: Path, records: Sequence[Mapping[str, Any]], arrays: Mapping[str, Any], manifest: Any) -> None:
    incoming = target.with_name(target.name + ".incoming")
    manifests.remove(incoming)
    incoming.mkdir(parents=True)
    with ocp.StandardCheckpointer() as writer:
        for part in dict.fromkeys(record["part"] for record in records):
            own = {r["name"]: arrays[r["name"]] for r in records if r["part"] == part and r["name"] in arrays}
            if own:
                writer.save(incoming / part, own, force=True)
                writer.wait_until_finished()
    if jax.process_index() == 0:
        manifests.write(incoming, manifest)
        manifests.move_in(incoming, target)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"jaxbig checkpoint {target.name}")


def restore(folder: str | Path, target: PyTree = None, step: int | None = None, only: str | None = None) -> PyTree:
    """Read a checkpoint.

    Args:
        folder: folder of checkpoints.
        target: pytree with the structure to restore, of arrays or `jax.ShapeDtypeStruct`s (as `jax.eval_shape` gives);
            their shardings, where they have them, are where the arrays go. None: a dictionary path -> array.
        step: which; None: the newest complete one.
        only: name of a top-level entry; `target` is that entry's tree, and no other is read.

    Returns:
        tree like `target`; every leaf has the very bits that were saved.

    Raises:
        UserError: no checkpoint there, a damaged one (the message names the file, and an older step that is whole), or
            one that does not fit `target` (the message names the first path that differs).

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = save(folder, 0, {"key": jax.random.key(1), "none": None, "w": jnp.arange(3)}, apart=["w"])
        >>> restore(folder, {"key": jax.random.key(0), "none": None, "w": jax.ShapeDtypeStruct((3,), jnp.int32)})["w"]
        Array([0, 1, 2], dtype=int32)
        >>> restore(folder, only="w")
        {'w': Array([0, 1, 2], dtype=int32)}
    """
    step = find(folder, step)
    manifest, place = manifests.read(folder, step), place_of(folder, step)
    records = [record for record in manifest["leaves"] if only is None or record["path"].split("/")[0] == only]
    if not records and only is not None:
        known = dict.fromkeys(record["path"].split("/")[0] for record in manifest["leaves"])
        raise UserError(f"{place}: has no {only!r}; there are {', '.join(known)}")
    manifests.verify(folder, step, manifest, {_part(record) for record in records})
    if target is None:
        leaves = _read(place, records, [None] * len(records))
        return {record["path"]: leaf for record, leaf in zip(records, leaves, strict=True)}
    flat, treedef = jax.tree_util.tree_flatten_with_path(target)
    head = "" if only is None else only
    names = [head + ("/" if head and keys else "") + path_of(keys) for keys, _ in flat]
    _check_target(place, records, {name: leaf for name, (_, leaf) in zip(names, flat, strict=True)})
    return treedef.unflatten(_read(place, records, [leaf for _, leaf in flat]))


def read_manifest(folder: str | Path, step: int | None = None) -> dict[str, Any]:
    """The entries that were given to `save` as `manifest`.

    Args:
        folder: folder of checkpoints.
        step: which; None: the newest complete one.

    Returns:
        dictionary.

    Raises:
        UserError: no checkpoint there, or a damaged manifest.
    """
    return manifests.read(folder, find(folder, step))["user"]


def _part(record: Mapping[str, Any]) -> str:
    return record.get("part", REST)


def _read(place: Path, records: Sequence[Mapping[str, Any]], targets: Sequence[Any]) -> list[Any]:
    """The leaves, each where its target says; without a sharding, uncommitted on the default device."""
    wanted: dict[str, dict[str, Any]] = {}
    shardings = {}
    for record, target in zip(records, targets, strict=True):
        shape, dtype = stored_shape(record)
        sharding = _sharding_of(target)
        shardings[record["name"]] = sharding
        if 0 not in shape:
            plain = sharding is None or "impl" in record
            placeholder = np.empty(shape, dtype) if plain else jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            wanted.setdefault(_part(record), {})[record["name"]] = placeholder
    stored: dict[str, Any] = {}
    with ocp.StandardCheckpointer() as reader:
        for part, placeholders in wanted.items():
            stored |= reader.restore(place / part, placeholders)
    leaves = []
    for record in records:
        shape, dtype = stored_shape(record)
        leaf = stored.get(record["name"], np.zeros(shape, dtype))
        kept = isinstance(leaf, np.ndarray) and jax.dtypes.canonicalize_dtype(dtype) != dtype
        leaf = leaf if kept else from_stored(jnp.array(leaf) if isinstance(leaf, np.ndarray) else leaf, record)
        sharding = shardings[record["name"]]
        leaves.append(leaf if sharding is None or kept else jax.device_put(leaf, sharding))
    return leaves


def _sharding_of(target: Any) -> Any:
    """Where a restored leaf has to go, or None if its target leaves that open."""
    if isinstance(target, jax.Array) and not target.committed:
        return None
    return getattr(target, "sharding", None)


def _check_target(place: Path, records: Sequence[Mapping[str, Any]], targets: Mapping[str, Any]) -> None:
    saved = {record["path"]: record for record in records}
    for path in [*saved, *targets]:
        if path not in targets:
            raise UserError(f"{place}: has {path}, which the tree to restore lacks; was it saved with another setting?")
        if path not in saved:
            raise UserError(f"{place}: lacks {path}, which the tree to restore has; was it saved with another setting?")
        target, record = targets[path], saved[path]
        target = target if hasattr(target, "dtype") else np.asarray(target)
        shape, dtype = list(target.shape), str(target.dtype)
        if (shape, dtype) != (record["shape"], record["dtype"]):
            was, now = f"{record['dtype']}{record['shape']}", f"{dtype}{shape}"
            raise UserError(
                f"{place}: {path} is {was}, the tree to restore wants {now}; was it saved with another setting?"
            )


__all__ = ["Snapshot", "best", "latest", "read_manifest", "restore", "save", "snapshot", "steps"]
