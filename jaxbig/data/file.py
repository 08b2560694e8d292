"""Files as bytes, text and lines, gzipped or not, with errors that name the file and the place in it."""

import difflib
import gzip
import os
import zlib
from pathlib import Path

from jaxbig.errors import UserError

_GZIP = b"\x1f\x8b"


def read(path: str | os.PathLike, hint: str = "") -> bytes:
    """The bytes of a file; gzip is recognised by its first bytes, not by the name, and taken off.

    Args:
        path: the file.
        hint: how to get the file where it is not there.

    Raises:
        UserError: the file is not there, cannot be read, is empty, or its gzip data is damaged.

    Example:
        >>> read("no_such_file.csv", "it is part of the public set X")
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: no_such_file.csv: no such file or folder; it is part of the public set X
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a file in it")
    if not path.exists():
        raise missing(path, hint)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path}: damaged gzip data ({_plain(error)}); get the file again") from error
    if not data:
        raise UserError(f"{path}: is empty; get the file again")
    return data


def read_text(path: str | os.PathLike, hint: str = "") -> str:
    """A UTF-8 file as text, without a byte order mark.

    Args:
        path: the file, gzipped or not.
        hint: how to get the file where it is not there.

    Returns:
        the text; line ends stay as they are.

    Raises:
        UserError: as `read`; or a byte is not UTF-8 (its position is counted after gzip is taken off).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt.gz"
        >>> _ = path.write_bytes(gzip.compress("zwölf\\n".encode()))
        >>> read_text(path)
        'zwölf\\n'
    """
    return decoded(path, read(path, hint))


def decoded(path: str | os.PathLike, data: bytes) -> str:
    """The text of a file's bytes.

    Raises:
        UserError: a byte is not UTF-8.

    Example:
        >>> decoded("a.txt", b"\\xef\\xbb\\xbfabc")
        'abc'
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}:{line}: byte {error.start} is no UTF-8 text; convert the file, e.g. iconv -f latin1 -t utf-8"
        ) from error


def missing(path: str | os.PathLike, hint: str = "") -> UserError:
    """The error for a file or folder that is not there; names one beside it that is called nearly so.

    Example:
        >>> str(missing("nowhere/a.csv"))
        'nowhere/a.csv: no such file or folder; check the name'
    """
    path = Path(path)
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    if near:
        return UserError(f"{path}: no such file; did you mean {path.parent / near[0]}?")
    return UserError(f"{path}: no such file or folder; {hint or 'check the name'}")


def inside(folder: str | os.PathLike, hint: str = "") -> list[Path]:
    """What a folder holds, sorted by name, without hidden files.

    Raises:
        UserError: there is no such folder, or it is a file.

    Example:
        >>> import tempfile
        >>> inside(tempfile.mkdtemp())
        []
    """
    folder = Path(folder)
    if not folder.exists():
        raise missing(folder, hint)
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; give the folder")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _plain(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
