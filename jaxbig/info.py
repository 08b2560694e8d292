"""``jaxbig info``: what a run's folder, a checkpoint or a published model holds, and whether it is whole."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxbig import manifest as manifests
from jaxbig.errors import UsageError, UserError
from jaxbig.gguf_info import gguf_info
from jaxbig.hub.gguf import is_gguf
from jaxbig.model_info import is_model, model_info
from jaxbig.storage import stored_shape
from jaxbig.words import Words

USAGE = "jaxbig info PATH [--step N] [--leaves]"


def info(words: Sequence[str], console: Console | None = None) -> int:
    """Prints what is in a run's folder, a folder of checkpoints, one checkpoint, a published model's folder,
    or a GGUF file.

    Args:
        words: those after ``jaxbig info``.
        console: where to print; None: standard output.

    Returns:
        the number of files that are missing or damaged.

    Raises:
        UsageError: an unknown option, or nothing at the path.
        UserError: there is no complete checkpoint, or some file is damaged (told after all else).
    """
    parser = Words(USAGE)
    parser.add_argument("path", type=Path)
    parser.add_argument("--step", type=int)
    parser.add_argument("--leaves", action="store_true")
    options = parser.read(words)
    console = Console(highlight=False) if console is None else console
    for holds, tell in ((is_gguf, gguf_info), (is_model, model_info)):
        if not holds(options.path):
            continue
        if options.step is not None:
            raise UsageError(f"{options.path}: is a published model, which has no steps; leave --step out")
        tell(options.path, options.leaves, console)
        return 0
    folder, step = _locate(options.path, options.step)
    whole = manifests.read(folder, step)
    place = manifests.place_of(folder, step)
    user = whole["user"]
    _head(console, place, whole)
    console.print(_parts(place, whole))
    if options.leaves:
        console.print(_leaves(whole))
    _user(console, user)
    console.print(_steps(folder, step))
    harm = [text for text in (manifests.damage(place, whole, {part}) for part in _part_names(whole)) if text]
    console.print(Text("every file has its size and checksum" if not harm else "\n".join(harm)))
    if harm:
        raise UserError(f"{place}: {len(harm)} parts are damaged; see above")
    return len(harm)


def _locate(path: Path, step: int | None) -> tuple[Path, int]:
    """Folder of checkpoints and step that a path means."""
    if not path.exists():
        raise UsageError(
            f"{path}: no such folder or file; give a run's, of checkpoints, one step's, a model's, or a GGUF file"
        )
    if (path / manifests.MANIFEST).is_file() and path.name.startswith("step_"):
        if step is not None:
            raise UsageError(f"{path}: is one step already; leave --step out")
        return path.parent, int(path.name.removeprefix("step_"))
    inner = path / "checkpoints"
    folder = inner if inner.is_dir() else path
    return folder, manifests.find(folder, step)


def _head(console: Console, place: Path, whole: Mapping[str, Any]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in whole["versions"].items())
    when = datetime.datetime.fromtimestamp((place / manifests.MANIFEST).stat().st_mtime)
    console.print(Text(f"{place}", style="bold"))
    console.print(
        Text(f"step {whole['step']:,}, written {when:%Y-%m-%d %H:%M:%S}, format {whole['format']}, {versions}")
    )


def _part_names(whole: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.split("/")[0] for name in whole["files"]))


def _parts(place: Path, whole: Mapping[str, Any]) -> Table:
    """One row a part: arrays, numbers, dtypes, bytes in memory and on disk."""
    table = Table(title="parts", title_justify="left")
    for name in ("part", "arrays", "numbers", "dtypes", "bytes", "on disk"):
        table.add_column(name, justify="left" if name in ("part", "dtypes") else "right")
    records = whole["leaves"]
    for head in dict.fromkeys(record["path"].split("/")[0] for record in records):
        own = [record for record in records if record["path"].split("/")[0] == head]
        sizes = [_size(record) for record in own]
        folders = {record.get("part", "arrays") for record in own}
        alone = folders == {head}
        disk = sum(size for name, (size, _) in whole["files"].items() if name.split("/")[0] == head) if alone else None
        dtypes = ", ".join(dict.fromkeys(record["dtype"] for record in own))
        numbers, held = sum(n for n, _ in sizes), sum(b for _, b in sizes)
        table.add_row(
            head or ".", f"{len(own):,}", f"{numbers:,}", dtypes, f"{held:,}", "-" if disk is None else f"{disk:,}"
        )
    return table


def _size(record: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers, and bytes as stored, of a leaf."""
    shape, dtype = stored_shape(record)
    count = 1
    for side in shape:
        count *= side
    numbers = 1
    for side in record["shape"]:
        numbers *= side
    return numbers, count * dtype.itemsize


def _leaves(whole: Mapping[str, Any]) -> Table:
    table = Table(title="leaves", title_justify="left")
    for name in ("path", "shape", "dtype"):
        table.add_column(name)
    for record in whole["leaves"]:
        table.add_row(record["path"], "x".join(map(str, record["shape"])) or "scalar", record["dtype"])
    return table


def _user(console: Console, user: Mapping[str, Any]) -> None:
    """What a run has written beside its arrays."""
    identity = user.get("identity", {})
    if identity.get("transform"):
        console.print(Text(f"technique: {_technique(identity['transform'])}"))
    if "base" in identity:
        console.print(Text(f"base {identity['base']}, data {json.dumps(identity.get('data'))}"))
    if "position" in user:
        position = user["position"]
        console.print(Text(f"data position: epoch {position['epoch'] + 1}, batch {position['step']} of it done"))
    if user.get("history"):
        line = user["history"][-1]
        console.print(Text("last line: " + ", ".join(f"{name} {_short(value)}" for name, value in line.items())))
    if user.get("config"):
        console.print(Text("config: " + json.dumps(user["config"])))
    rest = set(user) - {"identity", "position", "history", "config", "step", "scores", "totals"}
    for name in sorted(rest):
        console.print(Text(f"{name}: {json.dumps(user[name])}"))


def _technique(config: Mapping[str, Any]) -> str:
    """A transform's config as the call that made it."""
    rest = dict(config)
    name = rest.pop("technique", "?")
    if name == "chain":
        return f"chain({', '.join(_technique(link) for link in rest['links'])})"
    if name == "partition":
        return (
            "partition({" + ", ".join(f"{where!r}: {_technique(part)}" for where, part in rest["parts"].items()) + "})"
        )
    if name == "inject_hyperparams":
        return f"inject_hyperparams({_technique(rest['of'])})"
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in rest.items() if value is not None)})"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _steps(folder: Path, shown: int) -> Table:
    """One row a complete checkpoint: its scores."""
    found = {step: manifests.read(folder, step)["user"].get(manifests.SCORES, {}) for step in manifests.steps(folder)}
    names = [
        name for name in dict.fromkeys(name for scores in found.values() for name in scores) if name.startswith("val_")
    ]
    table = Table(title="complete checkpoints", title_justify="left")
    table.add_column("step", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for step, scores in found.items():
        values = [_short(scores[name]) if name in scores else "-" for name in names]
        table.add_row(f"{step:,}" + (" *" if step == shown else ""), *values)
    return table
