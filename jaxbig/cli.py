"""The `jaxbig` command: its commands, what it prints when something goes wrong, and its exit codes.

Only the standard library is imported here, so that `jaxbig --help` answers at once; what is heavy is imported by the
experiment that is run.
"""

import difflib
import os
import sys
import traceback
from collections.abc import Sequence

from jaxbig import __version__, manual
from jaxbig.errors import UsageError, UserError

_COMMANDS = ("run", "data", "info", "convert", "compare", "generate", "chat", "peft")
_LONGEST_MESSAGE = 600


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `jaxbig` command and turn every error into one line on stderr and an exit code.

    Args:
        argv: the words after `jaxbig`; None takes them from the process.

    Returns:
        0 done, 1 failure, 2 usage, 130 interrupted.

    Example:
        >>> main(["--version"])
        jaxbig 0.1.0
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        _dispatch(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except BrokenPipeError:
        # Whoever read our output has left (`jaxbig run FILE --help | head`); Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except UsageError as error:
        return _fail(f"error: {_one_line(error)}", 2, debug)
    except UserError as error:
        return _fail(f"error: {_one_line(error)}", 1, debug)
    except Exception as error:  # noqa: BLE001 - the last line of defence: reported, with the traceback one flag away
        return _fail(f"error: {_describe(error, _named_file(words))}", 1, debug)
    return 0


def _dispatch(words: list[str]) -> None:
    command, rest = (words[0], words[1:]) if words else ("", [])
    if command in ("-h", "--help", "help"):
        _say(manual.MAIN)
    elif command == "--version":
        _say(f"jaxbig {__version__}\n")
    elif command == "run":
        _run(rest)
    elif command == "data":
        _data(rest)
    elif command == "info":
        _info(rest)
    elif command == "convert":
        _convert(rest)
    elif command == "compare":
        _compare(rest)
    elif command == "generate":
        _generate(rest)
    elif command == "chat":
        _chat(rest)
    elif command == "peft":
        _peft(rest)
    elif not command:
        raise UsageError("no command; try `jaxbig run FILE`, or `jaxbig --help`")
    else:
        kind = "option" if command.startswith("-") else "command"
        near = difflib.get_close_matches(command, [*_COMMANDS, "--help", "--version", "--debug"], n=1)
        hint = f"did you mean {near[0]}?" if near else "try `jaxbig --help`"
        raise UsageError(f"unknown {kind} {command}; {hint}")


def _run(words: list[str]) -> None:
    if words and words[0] in ("-h", "--help"):
        _say(manual.RUN)
        return
    if not words:
        raise UsageError("no file; try `jaxbig run FILE [--field value]`, for example experiments/quickstart.py")
    if words[0].startswith("-"):
        raise UsageError(f"the file comes before {words[0]}: jaxbig run FILE [--field value]")
    from jaxbig.experiment import load, parse

    experiment = load(words[0])
    experiment.main(parse(experiment, words[1:]))


def _data(words: list[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        _say(manual.DATA)
        return
    if words[0] != "show":
        raise UsageError(f"data has no command {words[0]}; try `jaxbig data show PATH`")
    from jaxbig.show import parse, show

    show(parse(words[1:]))


def _info(words: list[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        _say(manual.INFO)
        return
    from jaxbig.info import info

    info(words)


def _convert(words: list[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        _say(manual.CONVERT)
        return
    from jaxbig.convert import convert

    convert(words)


def _compare(words: list[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        _say(manual.COMPARE)
        return
    from jaxbig.compare import compare

    compare(words)


def _generate(words: list[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        _say(manual.GENERATE)
        return
    from jaxbig.write import write

    write(words)


def _chat(words: list[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        _say(manual.CHAT)
        return
    from jaxbig.talk import talk

    talk(words)


def _peft(words: list[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        _say(manual.PEFT)
        return
    if words[0] != "list":
        raise UsageError(f"peft has no command {words[0]}; try `jaxbig peft list --model vit-b16`")
    from jaxbig.peft_list import peft_list

    peft_list(words[1:])


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sys.stdout.flush()
    print(f"jaxbig: {message}", file=sys.stderr)  # noqa: T201
    return code


def _say(text: str) -> None:
    sys.stdout.write(text)


def _named_file(words: list[str]) -> str:
    return words[1] if len(words) > 1 and words[0] == "run" else ""


def _describe(error: Exception, file: str) -> str:
    """Name the error, where in the user's own file it came from, and how to see more."""
    if isinstance(error, SyntaxError):
        name = os.path.relpath(error.filename) if error.filename else file
        line = f":{error.lineno}" if error.lineno else ""
        return f"{name}{line}: {type(error).__name__}: {error.msg}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if file and os.path.realpath(frame.filename) == os.path.realpath(file)
    ]
    where = f"{file}:{lines[-1]}; " if lines else ""
    message = _one_line(error)
    name = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"{name} ({where}rerun with --debug for the traceback)"


def _one_line(error: Exception) -> str:
    line = " ".join(str(error).split())
    return line if len(line) <= _LONGEST_MESSAGE else line[:_LONGEST_MESSAGE] + " ..."
