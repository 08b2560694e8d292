"""Checkpoints: trees of arrays on disk, bit for bit. The only module that imports orbax.

A folder of checkpoints holds one folder a step::

    step_00000012/arrays/        the leaves, written by orbax
    step_00000012/manifest.json  written last: paths, shapes and dtypes, checksums, versions, your own entries

A step without a manifest is not complete and does not exist for `steps` and `restore`; so a program that is killed
while it saves loses nothing that was saved before.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxbig.errors import UserError
from jaxbig.storage import encode, from_stored, stored_shape
from jaxbig.tree import PyTree, path_of

FORMAT = 1
MANIFEST = "manifest.json"
VERSIONS = {"jax": jax.__version__, "orbax-checkpoint": ocp.__version__, "numpy": np.__version__}


def save(
    folder: str | Path, step: int, tree: PyTree, manifest: Mapping[str, Any] | None = None, keep_last: int | None = None
) -> Path:
    """Write a checkpoint; it is on disk, whole, when this returns.

    Args:
        folder: folder of checkpoints; made if it is not there.
        step: number of the step, not negative. A complete checkpoint of that step is replaced.
        tree: pytree of arrays of any dtype: 4-bit integers, bfloat16, float8, typed PRNG keys, Weights, None.
        manifest: JSON-able entries to keep beside the arrays, such as the configuration; see `read_manifest`.
        keep_last: how many complete checkpoints to keep, the newest ones; None: all.

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
    target = _place(folder, step)
    incoming = target.with_name(target.name + ".incoming")
    records, leaves = encode(tree)
    manifest = {"format": FORMAT, "step": step, "versions": VERSIONS, "user": dict(manifest or {}), "leaves": records}
    try:
        json.dumps(manifest)
    except (TypeError, ValueError) as error:
        raise UserError(f"{target}: the manifest cannot be written as JSON: {error}") from error
    try:
        _remove(incoming)
        (incoming / "arrays").mkdir(parents=True)
        with ocp.StandardCheckpointer() as writer:
            writer.save(incoming / "arrays", leaves, force=True)
        if jax.process_index() == 0:
            _write_manifest(incoming, manifest)
            _move_in(incoming, target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"jaxbig checkpoint {step}")
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{target}: cannot be written ({reason}); make room or choose another folder") from error
    for old in steps(folder)[:-keep_last] if keep_last else []:
        _remove(_place(folder, old))
    return target


def restore(folder: str | Path, target: PyTree = None, step: int | None = None) -> PyTree:
    """Read a checkpoint.

    Args:
        folder: folder of checkpoints.
        target: pytree with the structure to restore, of arrays or `jax.ShapeDtypeStruct`s (as `jax.eval_shape` gives);
            their shardings, where they have them, are where the arrays go. None: a dictionary path -> array.
        step: which; None: the newest complete one.

    Returns:
        tree like `target`; every leaf has the very bits that were saved.

    Raises:
        UserError: no checkpoint there, a damaged one (the message names the file, and an older step that is whole), or
            one that does not fit `target` (the message names the first path that differs).

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = save(folder, 0, {"key": jax.random.key(1), "none": None, "w": jnp.arange(3)})
        >>> restore(folder, {"key": jax.random.key(0), "none": None, "w": jax.ShapeDtypeStruct((3,), jnp.int32)})["w"]
        Array([0, 1, 2], dtype=int32)
    """
    step, manifest = _open(folder, step)
    _check_files(folder, step, manifest)
    records = manifest["leaves"]
    if target is None:
        leaves = _read(_place(folder, step), records, [None] * len(records))
        return {record["path"]: leaf for record, leaf in zip(records, leaves, strict=True)}
    flat, treedef = jax.tree_util.tree_flatten_with_path(target)
    _check_target(_place(folder, step), records, {path_of(keys): leaf for keys, leaf in flat})
    return treedef.unflatten(_read(_place(folder, step), records, [leaf for _, leaf in flat]))


def steps(folder: str | Path) -> list[int]:
    """The complete checkpoints in a folder, ascending; [] if there is no such folder."""
    folder = Path(folder)
    entries = list(folder.iterdir()) if folder.is_dir() else []
    found = [(re.fullmatch(r"step_(\d{8,})", entry.name), entry) for entry in entries]
    return sorted(int(match[1]) for match, entry in found if match and (entry / MANIFEST).is_file())


def latest(folder: str | Path) -> int | None:
    """The newest complete checkpoint's step, or None.

    Example:
        >>> latest("no/such/folder") is None
        True
    """
    return max(steps(folder), default=None)


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
    return _open(folder, step)[1]["user"]


def _place(folder: str | Path, step: int) -> Path:
    return Path(folder).absolute() / f"step_{step:08d}"


def _read(place: Path, records: Sequence[Mapping[str, Any]], targets: Sequence[Any]) -> list[Any]:
    """The leaves, each where its target says; without a sharding, uncommitted on the default device."""
    wanted, shardings = {}, {}
    for record, target in zip(records, targets, strict=True):
        shape, dtype = stored_shape(record)
        sharding = _sharding_of(target)
        shardings[record["name"]] = sharding
        if 0 not in shape:
            plain = sharding is None or "impl" in record
            placeholder = np.empty(shape, dtype) if plain else None
            wanted[record["name"]] = placeholder if plain else jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    stored = {}
    if wanted:
        with ocp.StandardCheckpointer() as reader:
            stored = reader.restore(place / "arrays", wanted)
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


def _write_manifest(incoming: Path, manifest: Mapping[str, Any]) -> None:
    files = {path.relative_to(incoming).as_posix(): _checksum(path) for path in incoming.rglob("*") if path.is_file()}
    body = json.dumps({**manifest, "files": files}, indent=1)
    with open(incoming / MANIFEST, "w") as file:
        file.write(json.dumps({"crc32": zlib.crc32(body.encode())}) + "\n" + body)
        file.flush()
        os.fsync(file.fileno())


def _move_in(incoming: Path, target: Path) -> None:
    aside = target.with_name(target.name + ".replaced")
    _remove(aside)
    if target.exists():
        target.rename(aside)
    incoming.rename(target)
    _remove(aside)


def _remove(path: Path) -> None:
    # The manifest goes first: what is half removed must not count as complete.
    (path / MANIFEST).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)


def _checksum(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return [path.stat().st_size, crc]


def _open(folder: str | Path, step: int | None) -> tuple[int, dict[str, Any]]:
    found = steps(folder)
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; give one that a run has saved checkpoints in")
    if not found or (step is not None and step not in found):
        what = "no complete checkpoint" if step is None else f"no complete checkpoint of step {step}"
        raise UserError(f"{folder}: {what}; {f'there are steps {found}' if found else 'start without resuming'}")
    step = found[-1] if step is None else step
    return step, _manifest(folder, step)


def _manifest(folder: str | Path, step: int) -> dict[str, Any]:
    path = _place(folder, step) / MANIFEST
    try:
        head, body = path.read_text().split("\n", 1)
        if json.loads(head)["crc32"] != zlib.crc32(body.encode()):
            raise ValueError("checksum")
        manifest = json.loads(body)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged; {_way_out(folder, step)}") from error
    if manifest["format"] > FORMAT:
        raise UserError(f"{path}: was written by a newer jaxbig (format {manifest['format']}); upgrade jaxbig")
    return manifest


def _check_files(folder: str | Path, step: int, manifest: Mapping[str, Any]) -> None:
    damage = _damage(_place(folder, step), manifest)
    if damage:
        raise UserError(f"{damage}; {_way_out(folder, step)}")


def _damage(place: Path, manifest: Mapping[str, Any]) -> str | None:
    for name, (size, crc) in manifest["files"].items():
        path = place / name
        if not path.is_file():
            return f"{path}: is missing"
        if path.stat().st_size != size:
            return f"{path}: is truncated ({path.stat().st_size} of {size} bytes)"
        if _checksum(path) != [size, crc]:
            return f"{path}: is damaged"
    return None


def _way_out(folder: str | Path, step: int) -> str:
    for older in reversed([other for other in steps(folder) if other < step]):
        try:
            whole = _damage(_place(folder, older), _manifest(folder, older)) is None
        except UserError:
            continue
        if whole:
            return f"step {older} is whole: remove {_place(folder, step)} to go on from there"
    return "no older checkpoint is whole; start anew"
