"""``jaxbig chat``: a conversation with a model in a folder, in the terminal."""

import sys
from collections.abc import Sequence
from typing import TextIO

from jaxbig.errors import UsageError
from jaxbig.tuned import open_text_model
from jaxbig.write import Shown, answer, how_of, options_of

USAGE = "jaxbig chat PATH [--system TEXT] [--max-tokens N] [--temperature T] ..."
COMMANDS = {"/new": "forget what was said", "/quit": "end (or Ctrl-D)"}


def talk(words: Sequence[str], given: TextIO | None = None, out: TextIO | None = None) -> list[dict[str, str]]:
    """Reads what the user says line by line, and answers.

    Args:
        words: those after ``jaxbig chat``.
        given: where the user's lines come from; None: standard input.
        out: where answers go; None: standard output.

    Returns:
        the conversation, as a chat template takes it.

    Raises:
        UsageError: an unknown option, nothing at the path, a model without a chat template, a conversation that has
            grown longer than the model's positions.
        UserError: a damaged file; a template that refuses the conversation.

    Each answer reads the whole conversation again.
    """
    parser = options_of(USAGE)
    parser.add_argument("--system")
    options = parser.read(words)
    how, model = how_of(options), open_text_model(options.path, options.base)
    if model.talk is None:
        raise UsageError(f"{options.path}: has no chat template; `jaxbig generate` goes on with a prompt")
    lines: TextIO = sys.stdin if given is None else given
    place: TextIO = sys.stdout if out is None else out
    start = [{"role": "system", "content": options.system}] if options.system else []
    said = list(start)
    _tell(lines, "; ".join(f"{name}: {what}" for name, what in COMMANDS.items()) + "\n")
    while line := _asked(lines):
        line = line.strip()
        if line == "/quit":
            break
        if line == "/new":
            said = list(start)
        if not line or line == "/new":
            continue
        if line.startswith("/"):
            _tell(lines, f"no command {line.split()[0]}; there are {', '.join(COMMANDS)}\n")
            continue
        said.append({"role": "user", "content": line})
        shown = Shown(place, model.decode, [], options.stop)
        said.append({"role": "assistant", "content": answer(model, model.talk(said), shown, options, how)})
    return said


def _asked(given: TextIO) -> str:
    """The user's next line; "" at the end."""
    _tell(given, "> ")
    try:
        return given.readline()
    except KeyboardInterrupt:
        return ""


def _tell(given: TextIO, text: str) -> None:
    """To a user who sits there; what comes from a file or a pipe needs no prompts."""
    if given.isatty():
        print(text, end="", file=sys.stderr, flush=True)  # noqa: T201
