"""Files and folders that are written whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxbig.errors import UserError


def write(path: str | os.PathLike, data: str | bytes) -> Path:
    """Writes a file so that a reader, a kill or a full disk never leaves half of one.

    The data goes to a hidden file beside it, is synced to disk, and takes the name in one step.

    Args:
        path: the file; its folder is made where it is missing.
        data: text (UTF-8) or bytes.

    Returns:
        the path.

    Raises:
        UserError: the folder or the file cannot be written; what was there before is still there.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> write(folder + "/a/note.txt", "once").read_text()
        'once'
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another folder or free some space"
        ) from error
    return path


@contextlib.contextmanager
def folder(path: str | os.PathLike, replaces: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """A folder to fill, which takes its name when the block ends without an error.

    Args:
        path: the folder; what is above it is made where it is missing.
        replaces: whether a file of a folder that is there already is out of date, by name; all others are kept, and
            stay where no new one has their name. None: only an empty folder may be there.

    Yields:
        a hidden folder beside it, which is gone after an error. A kill may leave it; and one in the instant between the
        two renames of `replaces` leaves the old folder beside, under a name that begins with a dot and its own.

    Raises:
        UserError: it cannot be written, or there is a folder with files and `replaces` is None.

    Example:
        >>> place = Path(tempfile.mkdtemp()) / "model"
        >>> with folder(place) as inside:
        ...     _ = (inside / "config.json").write_text("{}")
        >>> [file.name for file in place.iterdir()]
        ['config.json']
    """
    path, temporary = Path(path), None
    try:
        if path.exists() and (not path.is_dir() or (replaces is None and any(path.iterdir()))):
            raise UserError(f"{path}: is there already and not an empty folder; give another, or overwrite=True")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        os.chmod(temporary, 0o777 & ~_umask())
        if path.exists() and any(path.iterdir()):
            _swap(path, temporary, replaces or (lambda name: False))
        else:
            os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another folder or free some space"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _swap(path: Path, new: Path, replaces: Callable[[str], bool]) -> None:
    """Puts `new` in the place of `path`, and moves what else was there into it."""
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    os.replace(path, old)
    os.replace(new, path)
    for file in old.iterdir():
        if not replaces(file.name) and not (path / file.name).exists():
            os.replace(file, path / file.name)
    shutil.rmtree(old)


def _sync(path: Path) -> None:
    """Has the disk hold a file, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
