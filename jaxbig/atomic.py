"""Files that are written whole or not at all."""

import os
import tempfile
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
