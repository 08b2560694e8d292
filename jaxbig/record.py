"""What a command measured, as one line that is added to a file and never changed."""

import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxbig.errors import UserError


def record(path: str | os.PathLike, measured: Mapping[str, Any]) -> Path:
    """Adds a line of JSON to a file: when, by which command, with which versions, on what, and what was measured.

    Of absolute paths in the command only the last part is kept: the rest says something of this machine alone.

    Args:
        path: the file, such as ``benchmarks/results/NAME.jsonl``; made where it is not there.
        measured: JSON-able, such as seeds, metrics and seconds.

    Returns:
        the path.

    Raises:
        UserError: `measured` is not JSON-able (nan is not), or the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = record(tempfile.mkdtemp() + "/trial.jsonl", {"accuracy": 0.9})
        >>> sorted(json.loads(path.read_text()))
        ['accuracy', 'command', 'cores', 'date', 'device', 'jax', 'load', 'python']
    """
    path = Path(path)
    line = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(sys.argv),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        **measured,
    }
    try:
        text = json.dumps(line, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: what was measured cannot be written as JSON: {error}") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One write to a file opened for appending: lines of two commands never run into each other.
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from error
    return path


def command(words: Sequence[str]) -> str:
    """A process's words as others would type them.

    Example:
        >>> command(["/usr/lib/jaxbig/__main__.py", "run", "a.py", "--data.dir", "/home/me/data/mnist"])
        'jaxbig run a.py --data.dir mnist'
    """
    own = Path(words[0])
    name = own.parent.name if own.name == "__main__.py" else own.name
    return shlex.join([name, *(Path(word).name if os.path.isabs(word) else word for word in words[1:])])
