"""Folders of checkpoints: which steps are complete, their manifests and checksums, and which of them to keep.

A step without a manifest is not complete and does not exist. The manifest is written last and names every file with its
size and CRC-32, so that what is truncated, altered or missing is found before anything is read.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxbig.errors import UsageError, UserError

FORMAT = 2
MANIFEST = "manifest.json"
SCORES = "scores"


class Goal(NamedTuple):
    """A metric and whether more of it is better, written ``max:val_accuracy`` or ``min:val_loss``."""

    metric: str
    sign: int

    @classmethod
    def parse(cls, text: str) -> "Goal":
        """From its written form.

        Raises:
            UsageError: it is written otherwise.

        Example:
            >>> Goal.parse("min:val_loss")
            Goal(metric='val_loss', sign=-1)
        """
        mode, colon, metric = text.partition(":")
        if mode not in ("min", "max") or not colon or not metric:
            raise UsageError(f"goal {text!r}: write min:METRIC or max:METRIC, such as max:val_accuracy")
        return cls(metric, 1 if mode == "max" else -1)

    def value(self, scores: Mapping[str, Any]) -> float:
        """Its value with the sign that makes more better; -inf where there is none, or it is no number."""
        value = scores.get(self.metric)
        return self.sign * value if isinstance(value, int | float) and value == value else -float("inf")


def place_of(folder: str | Path, step: int) -> Path:
    """The folder of a step."""
    return Path(folder).absolute() / f"step_{step:08d}"


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


def best(folder: str | Path, goal: str) -> int:
    """The complete checkpoint whose manifest's ``scores`` are best; of equal ones the oldest.

    Args:
        folder: folder of checkpoints.
        goal: such as ``max:val_accuracy``.

    Returns:
        the step.

    Raises:
        UserError: no checkpoint has that metric.
    """
    wanted = Goal.parse(goal)
    found = {step: wanted.value(read(folder, step)["user"].get(SCORES, {})) for step in steps(folder)}
    if not found or max(found.values()) == -float("inf"):
        raise UserError(f"{folder}: no checkpoint knows {wanted.metric}; there are steps {list(found)}")
    return max(found, key=lambda step: (found[step], -step))


def prune(folder: str | Path, keep_last: int | None, keep_best: str | None = None) -> None:
    """Removes complete checkpoints, but not the newest `keep_last` nor the best."""
    every = steps(folder)
    kept = set(every[-keep_last:] if keep_last else every)
    if keep_best is not None:
        wanted = Goal.parse(keep_best)
        scores = {step: wanted.value(read(folder, step)["user"].get(SCORES, {})) for step in every}
        kept.add(max(every, key=lambda step: (scores[step], -step), default=-1))
    for step in every:
        if step not in kept:
            remove(place_of(folder, step))


def write(incoming: Path, manifest: Mapping[str, Any]) -> None:
    """Completes a checkpoint's folder: the manifest with its files' checksums, on disk when this returns."""
    files = {path.relative_to(incoming).as_posix(): checksum(path) for path in incoming.rglob("*") if path.is_file()}
    body = json.dumps({**manifest, "files": files}, indent=1)
    with open(incoming / MANIFEST, "w") as file:
        file.write(json.dumps({"crc32": zlib.crc32(body.encode())}) + "\n" + body)
        file.flush()
        os.fsync(file.fileno())


def move_in(incoming: Path, target: Path) -> None:
    """Gives a completed folder its name; one that was there is replaced."""
    aside = target.with_name(target.name + ".replaced")
    remove(aside)
    if target.exists():
        target.rename(aside)
    incoming.rename(target)
    remove(aside)


def remove(path: Path) -> None:
    """Removes a checkpoint's folder."""
    # The manifest goes first: what is half removed must not count as complete.
    (path / MANIFEST).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)


def checksum(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return [path.stat().st_size, crc]


def find(folder: str | Path, step: int | None) -> int:
    """The step to read: `step` itself, or the newest complete one.

    Raises:
        UserError: it is not there.
    """
    found = steps(folder)
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; give one that a run has saved checkpoints in")
    if not found or (step is not None and step not in found):
        what = "no complete checkpoint" if step is None else f"no complete checkpoint of step {step}"
        raise UserError(f"{folder}: {what}; {f'there are steps {found}' if found else 'start without resuming'}")
    return found[-1] if step is None else step


def read(folder: str | Path, step: int) -> dict[str, Any]:
    """A step's whole manifest.

    Raises:
        UserError: it is damaged, or of a newer jaxbig.
    """
    path = place_of(folder, step) / MANIFEST
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


def verify(folder: str | Path, step: int, manifest: Mapping[str, Any], parts: set[str] | None = None) -> None:
    """Checks the files of a step, or of some of its parts.

    Raises:
        UserError: one is missing, truncated or altered; the message names it, and an older step that is whole.
    """
    found = damage(place_of(folder, step), manifest, parts)
    if found:
        raise UserError(f"{found}; {_way_out(folder, step)}")


def damage(place: Path, manifest: Mapping[str, Any], parts: set[str] | None = None) -> str | None:
    """What is wrong with the first file that is; None: nothing."""
    for name, (size, crc) in manifest["files"].items():
        if parts is not None and name.split("/")[0] not in parts:
            continue
        path = place / name
        if not path.is_file():
            return f"{path}: is missing"
        if path.stat().st_size != size:
            return f"{path}: is truncated ({path.stat().st_size} of {size} bytes)"
        if checksum(path) != [size, crc]:
            return f"{path}: is damaged"
    return None


def _way_out(folder: str | Path, step: int) -> str:
    for older in reversed([other for other in steps(folder) if other < step]):
        try:
            whole = damage(place_of(folder, older), read(folder, older)) is None
        except UserError:
            continue
        if whole:
            return f"step {older} is whole: remove {place_of(folder, step)} to go on from there"
    return "no older checkpoint is whole; start anew"
