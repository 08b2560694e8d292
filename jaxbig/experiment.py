"""Experiments: Python files with a frozen dataclass `Config` and a `main(config)`, and their command lines."""

import contextlib
import dataclasses
import difflib
import errno
import importlib.util
import io
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from jaxbig.errors import UsageError


class Experiment(NamedTuple):
    """What a file says: its configuration class, what it runs, and what it tells about itself."""

    path: Path
    config: type
    main: Callable[[Any], None]
    description: str


def load(path: str | Path) -> Experiment:
    """Import an experiment from its file.

    The file need not be on the import path; modules beside it can be imported as when Python runs it, but never hide
    one that is installed.

    Args:
        path: a Python file with a frozen dataclass `Config` and a function `main(config)`.

    Returns:
        The experiment; nothing of it has run but its top level.

    Raises:
        UsageError: there is no such file, or it has no such `Config` or `main`.
        SyntaxError: a null byte in the file.
        Exception: whatever the file's top level raises.

    Example:
        >>> load("no_such_file.py")
        Traceback (most recent call last):
            ...
        jaxbig.errors.UsageError: no_such_file.py: no such file
    """
    if not str(path):
        raise UsageError("the file's name is empty; give the experiment's Python file")
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give the experiment's Python file")
    if not path.exists():
        raise UsageError(f"{path}: no such file{_near_file(path)}")
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"{path}: not a Python file (its name must end in .py)")
    if b"\0" in path.read_bytes():  # a ValueError without the file's name in Python 3.11.0 to 3.11.3
        raise SyntaxError("source code cannot contain null bytes", (str(path), None, None, None))
    name = "jaxbig_experiment_" + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: cannot be loaded as a Python module")
    module = importlib.util.module_from_spec(spec)
    # dataclasses and tyro look a class's module up by its name to resolve annotations and read its source.
    sys.modules[name] = module
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    spec.loader.exec_module(module)
    config, main = getattr(module, "Config", None), getattr(module, "main", None)
    _check(path, config, main)
    return Experiment(path, typing.cast(type, config), typing.cast(Callable, main), (module.__doc__ or "").strip())


def parse(experiment: Experiment, words: Sequence[str]) -> Any:
    """Read an experiment's configuration from a command line.

    Args:
        experiment: what `load` returned.
        words: the words after the file, such as `["--epochs", "3"]`; `--help` prints the help and ends the process.

    Returns:
        An instance of the experiment's `Config`.

    Raises:
        UsageError: an unknown option (names the nearest one), a missing or an ill-typed value, and whatever the
            configuration's own ``__post_init__`` refuses; see `check_range`.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     epochs: int = 5
        >>> trial = Experiment(Path("trial.py"), Config, print, "A trial.")
        >>> parse(trial, ["--epochs", "3"]).epochs
        3
        >>> parse(trial, ["--epoch", "3"])
        Traceback (most recent call last):
            ...
        jaxbig.errors.UsageError: unknown option --epoch; did you mean --epochs?
    """
    options = list(_options(experiment.config))
    if "--debug" in options:
        raise UsageError(f"{experiment.path}: Config.debug: --debug is the command's own; give the field another name")
    if "--" in words:
        raise UsageError("'--' is not needed: options follow the file, as in jaxbig run FILE --field value")
    # tyro draws its errors as boxes on stderr and leaves by SystemExit; users are promised one plain line.
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            config, unknown = tyro.cli(
                experiment.config,
                prog=f"jaxbig run {experiment.path}",
                description=experiment.description,
                args=list(words),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_message(caught.getvalue())) from None
    if unknown:
        raise UsageError(_unknown(unknown[0], words, options))
    return config


def check_range(config: Any, low: float, high: float, *fields: str) -> None:
    """Refuses fields of a configuration that are out of range; for its ``__post_init__``, before any work.

    Args:
        config: the dataclass.
        low, high: the smallest and the largest value.
        *fields: names of its fields.

    Raises:
        UsageError: a field lies outside.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     epochs: int = 5
        ...     def __post_init__(self):
        ...         check_range(self, 1, math.inf, "epochs")
        >>> Config(epochs=0)
        Traceback (most recent call last):
            ...
        jaxbig.errors.UsageError: --epochs 0: give at least 1
    """
    for field in fields:
        value = getattr(config, field)
        if not low <= value <= high:
            limits = f"at least {low}" if high == math.inf else f"{low} to {high}"
            raise UsageError(f"--{field.replace('_', '-')} {value}: give {limits}")


def make_folder(path: str | Path, option: str = "--workdir") -> Path:
    """The folder that an option names, made if it is not there; the first thing that an experiment does.

    Args:
        path: the folder.
        option: how the user gave it.

    Raises:
        UsageError: no name, a file of that name, or the system refuses.

    Example:
        >>> make_folder("")
        Traceback (most recent call last):
            ...
        jaxbig.errors.UsageError: --workdir: is empty; name a folder
    """
    if not str(path):
        raise UsageError(f"{option}: is empty; name a folder")
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{option} {path}: cannot be made a folder to write in ({reason}); name another") from None
    return Path(path)


def _near_file(path: Path) -> str:
    siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _check(path: Path, config: Any, main: Any) -> None:
    if config is None:
        raise UsageError(f"{path}: no class Config; an experiment has a frozen dataclass Config and main(config)")
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise UsageError(f"{path}: Config is no dataclass; put @dataclasses.dataclass(frozen=True) above it")
    if not typing.cast(Any, config).__dataclass_params__.frozen:
        raise UsageError(f"{path}: Config is not frozen; put @dataclasses.dataclass(frozen=True) above it")
    if not callable(main):
        raise UsageError(
            f"{path}: no function main(config); an experiment has a frozen dataclass Config and main(config)"
        )


def _options(config: type, prefix: str = "") -> Iterator[str]:
    """The options of a configuration class, those of nested classes with their field's name before a dot."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        name = prefix + field.name.replace("_", "-")
        inner = hints[field.name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from _options(inner, name + ".")
        else:
            yield "--" + name
        if inner is bool:
            head, dot, tail = name.rpartition(".")
            yield f"--{head}{dot}no-{tail}"


def _unknown(word: str, words: Sequence[str], options: Sequence[str]) -> str:
    if not word.startswith("-"):
        before = words[words.index(word) - 1] if word in words[1:] else ""
        head, dot, tail = before.removeprefix("--").rpartition(".")
        off = f"--{head}{dot}no-{tail}"
        if before in options and off in options:
            return f"{before} takes no value, but got {word!r}; write {before} or {off}"
        return f"unexpected argument {word!r}; options are written --field value, and `--help` lists them"
    option = word.split("=")[0]
    near = difflib.get_close_matches(option.replace("_", "-"), [*options, "--help"], n=1, cutoff=0.5)
    return f"unknown option {option}; " + (f"did you mean {near[0]}?" if near else "`--help` lists them")


def _message(box: str) -> str:
    """One line from a box of tyro's: its first paragraph, and how the option is used where it says so."""
    lines = [line.strip("│| ").strip() for line in box.splitlines()]
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("───") or not line:
            paragraphs.append([])
        elif not line.startswith(("╭", "╰")):
            paragraphs[-1].append(line)
    texts = [part for part in paragraphs if part]
    if not texts:
        return "the command line cannot be read; `--help` lists the options"
    what = " ".join(texts[0]).removeprefix("Error parsing ").rstrip(".")
    usage = [line for part in texts[1:] for line in part if line.startswith("--")]
    return what + (f"; expected {usage[0]}" if usage else "")
