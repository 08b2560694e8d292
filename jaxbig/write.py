"""``jaxbig generate``: a model in a folder goes on with a prompt, token by token, in the terminal."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax

from jaxbig.errors import UsageError
from jaxbig.generate import loop, seq2seq
from jaxbig.generate.sampling import Sampling, sampling
from jaxbig.hub.text_model import TextModel
from jaxbig.tuned import open_text_model
from jaxbig.words import Words

USAGE = "jaxbig generate PATH PROMPT [--max-tokens N] [--temperature T] ..."
CHUNK = 8  # steps between two looks: one step of a small model takes less time than a look


def write(words: Sequence[str], out: TextIO | None = None) -> str:
    """Goes on with a prompt and prints the whole text as it comes; tokens a second go to standard error.

    An encoder-decoder answers to a prompt: its text is printed alone.

    Args:
        words: those after ``jaxbig generate``.
        out: where the text goes; None: standard output.

    Returns:
        the text without the prompt.

    Raises:
        UsageError: an unknown option, a number out of its range, a prompt that is too long, nothing at the path.
        UserError: a damaged file.
    """
    parser = options_of(USAGE)
    parser.add_argument("prompt")
    options = parser.read(words)
    how = how_of(options)
    model = open_text_model(options.path, options.base)
    ids = model.encode(options.prompt)
    shown = Shown(sys.stdout if out is None else out, model.decode, [] if model.answers else ids, options.stop)
    return answer(model, ids, shown, options, how)


def answer(model: TextModel, ids: list[int], shown: "Shown", options: Any, how: Sampling) -> str:
    """Goes on with ids, as the options say; what comes is `shown`, and how fast is told on standard error."""
    steps = _room(model, len(ids), options.max_tokens)
    started = time.perf_counter()
    stream = seq2seq.stream if model.answers else loop.stream
    parts = stream(
        model.module, model.params, [ids], max_tokens=steps, how=how, key=jax.random.key(options.seed),
        ends=model.ends, stop=options.stop, decoded=model.decode, int8=options.int8, chunk=CHUNK,
    )  # fmt: skip
    counts, times = [], []
    for (new,) in parts:
        shown.add(new)
        counts.append(len(new))
        times.append(time.perf_counter() - started)
    text = shown.finish()
    _report(counts, times)
    return text


def how_of(options: Any) -> Sampling:
    """How the options say that tokens are drawn."""
    if not 0 <= options.seed < 2**32:
        raise UsageError(f"--seed is {options.seed}; it has to be from 0 to {2**32 - 1}")
    return sampling(
        options.temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty
    )  # fmt: skip


def options_of(usage: str) -> Words:
    """The options that every command has that writes texts; the path comes first."""
    parser = Words(usage)
    parser.add_argument("path", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--repetition-penalty", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", action="append", default=[])
    parser.add_argument("--int8", action="store_true")
    return parser


def _room(model: TextModel, length: int, asked: int) -> int:
    """How many tokens there may be: what is asked for, or what the model is made for."""
    if asked < 1:
        raise UsageError(f"--max-tokens is {asked}; it has to be 1 or more")
    if not length:
        raise UsageError("the prompt is empty, and the tokenizer has no id that begins a text; give a prompt")
    if model.positions is None:
        return asked
    if length >= model.positions:
        raise UsageError(f"the prompt has {length} tokens, the model is made for {model.positions}; shorten it")
    return min(asked, model.positions - length)


class Shown:
    """Prints a text as its tokens come: never half a letter, never a stop string or what may become one.

    Args:
        out: where it is printed.
        decode: ids -> text.
        ids: of the prompt, which is printed first; [] for an answer by itself.
        stop: strings.
    """

    def __init__(self, out: TextIO, decode: Callable[[list[int]], str], ids: list[int], stop: Sequence[str]):
        self._out, self._decode, self._ids, self._stop = out, decode, list(ids), tuple(stop)
        self._prompt, self._printed = decode(self._ids) if ids else "", 0
        self._print(self._prompt)

    def add(self, ids: list[int]) -> None:
        """More tokens."""
        self._ids += ids
        text = self._text()
        keep = max((n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._print(text[: len(text) - keep].rstrip("\N{REPLACEMENT CHARACTER}"))

    def finish(self) -> str:
        """What was held back, and a line's end. Returns the text after the prompt."""
        text = self._text()
        self._print(text)
        self._out.write("\n")
        self._out.flush()
        return text[len(self._prompt) :]

    def _text(self) -> str:
        """All of it, without a stop string and what comes after."""
        text = self._decode(self._ids)
        ends = [at for stop in self._stop if (at := text.find(stop, len(self._prompt))) >= 0]
        return text[: min(ends)] if ends else text

    def _print(self, text: str) -> None:
        if len(text) > self._printed:
            self._out.write(text[self._printed :])
            self._out.flush()
            self._printed = len(text)


def _report(counts: Sequence[int], times: Sequence[float]) -> None:
    """The first two parts wait for their programs to be compiled; the rate is that of those after them."""
    rate = f", then {sum(counts[2:]) / (times[-1] - times[1]):,.1f} tokens/s" if len(counts) > 2 else ""
    print(f"{sum(counts)} tokens; the first after {times[0]:.2f} s{rate}", file=sys.stderr)  # noqa: T201
