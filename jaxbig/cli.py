"""The `jaxbig` command: its commands, what it prints when something goes wrong, and its exit codes.

Only the standard library is imported here, so that `jaxbig --help` answers at once; what is heavy is imported by the
experiment that is run.
"""

import difflib
import os
import sys
import traceback
from collections.abc import Sequence

from jaxbig import __version__
from jaxbig.errors import UsageError, UserError

_HELP = """\
usage: jaxbig [--help] [--version] [--debug] COMMAND ...

Techniques for the whole life of a large JAX model: train, transfer, tune, distill, prune, quantise, export.

commands:
  run FILE [--field value ...]   run an experiment: a Python file with a frozen dataclass `Config` and `main(config)`
  run FILE --help                show what the experiment does, and each field's default and meaning
  data show PATH [--out PNG]     show what a file or folder of data holds: statistics, classes, a picture of a batch
  info PATH                      show what a run or a checkpoint holds: parts, technique, settings, whether it is whole
  compare RUN RUN...             show runs side by side: a table, and with --out FILE.html their learning curves
  generate PATH PROMPT           go on with a prompt, by a model in a folder: greedy or sampled, as it comes
  peft list --model NAME         show what each technique would train, hold and compute on a model, allocating nothing

options:
  -h, --help    show this message
  --version     show the version
  --debug       show the whole traceback of an error (may stand anywhere on the line)

exit codes: 0 done, 1 it failed, 2 the command line is wrong, 130 interrupted

example: jaxbig run experiments/quickstart.py --epochs 5 --seed 1
"""

_RUN_HELP = """\
usage: jaxbig run FILE [--field value ...]

Run FILE, a Python file with a frozen dataclass `Config` and `main(config)`. Each field of `Config` is an option.

  jaxbig run FILE --help   show what the experiment does, and each field's default and meaning

A smallest experiment:

  import dataclasses

  @dataclasses.dataclass(frozen=True)
  class Config:
      epochs: int = 5
      \"\"\"Passes over the training data.\"\"\"

  def main(config: Config) -> None:
      print(config.epochs)
"""

_DATA_HELP = """\
usage: jaxbig data show PATH [--n N] [--out FILE.png] [--part NAME] [--rows 10000] [--seed 0] [--size PIXELS]

Show what PATH holds: the number of examples, each array's shape, type and range, the classes and how often they
occur, words of text, seconds of recordings. The format is told by what is inside, not by the name:

  files     IDX, npz (arrays, MedMNIST, packed images or recordings), separated values, JSON, jsonl, text, wav, images;
            each but npz, wav and images may be gzipped
  folders   MNIST's files; images or wav files, a sub-folder a class; translations (train.en, train.de); several files

options:
  --out FILE.png   draw some examples: images with labels, recordings with spectrograms, or rows of a table
  --n N            how many examples to draw (default 16, of recordings 8)
  --part NAME      which split or file to draw them from (default: the training part, or the first)
  --rows N         how many examples to look at where they are decoded one by one (default 10000; 0: all)
  --seed N         which examples are drawn (default 0)
  --size PIXELS    resize images to a square, needed where they differ in size

example: jaxbig data show data/mnist --out mnist.png
"""

_INFO_HELP = """\
usage: jaxbig info PATH [--step N] [--leaves]

Show what PATH holds: a run's folder (--workdir), its folder of checkpoints, or one step's. Parts with their sizes, the
technique with its arguments, configuration, versions, position in the data, all complete steps with their scores; and
check every file against its checksum (exit code 1 if one is damaged).

options:
  --step N     which checkpoint (default: the newest complete one)
  --leaves     list every array

example: jaxbig info runs/quickstart/teacher
"""

_COMPARE_HELP = """\
usage: jaxbig compare RUN RUN... [--best max:METRIC] [--out FILE.html]

Show runs side by side. RUN is a run's folder (--workdir), which holds metrics.jsonl.

options:
  --best GOAL      each run's best line by max:METRIC or min:METRIC in place of its last one
  --out FILE.html  write the table and the learning curves as one self-contained page

example: jaxbig compare runs/a runs/b --best max:val_accuracy --out compare.html
"""

_PEFT_HELP = """\
usage: jaxbig peft list --model NAME [--method NAME ...] [--batch N] [--image PIXELS]

Show what each technique would cost on a model, with its defaults (adalora and trainable_tokens have none: with a small
example's): trained parameters, bytes of the adapter and of the frozen base, FLOPs of a forward pass and of a training
step. Nothing is allocated or compiled, so the model may be of any size; techniques that find nothing to do in it are
named, and why.

options:
  --model NAME     vit-ti16, vit-s16, vit-b16, vit-l16, vit-h14, resnet18, resnet34, resnet50; a published model's
                   config.json; or FILE.py:FUNCTION, a function that takes the batch size and returns a linen module
                   and a tuple of its inputs
  --method NAME    only these (default: all)
  --batch N        rows of the batch (default 1)
  --image PIXELS   height and width of images (default 224)

example: jaxbig peft list --model vit-b16 --method lora ia3 full
"""

_GENERATE_HELP = """\
usage: jaxbig generate PATH PROMPT [--max-tokens N] [--temperature T] [--top-k K] [--top-p P] [--min-p P] [--seed N]
                       [--repetition-penalty R] [--stop TEXT ...] [--int8]

Go on with PROMPT and print the whole text as it comes; tokens a second are told on standard error. PATH is a folder
with a model of llama2.c and its tokenizer, two files *.bin; the format is told by what is inside, not by the names.

options:
  --max-tokens N            at most so many tokens after the prompt (default 256; never beyond the model's positions)
  --temperature T           0: always the likeliest token; less than 1: safer, more: more surprising (default 1)
  --top-k K                 draw from the K likeliest tokens only
  --top-p P                 draw from the likeliest tokens that together have probability P
  --min-p P                 draw from tokens at least P times as likely as the likeliest
  --repetition-penalty R    make tokens less likely that the text has already (more than 1)
  --seed N                  what is drawn (default 0): the same seed gives the same text
  --stop TEXT               end before TEXT; may be given more than once
  --int8                    keep the attention's keys and values in 8 bits

example: jaxbig generate models/stories260K "Once upon a time" --max-tokens 200 --temperature 0
"""

_COMMANDS = ("run", "data", "info", "compare", "generate", "peft")
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
        _say(_HELP)
    elif command == "--version":
        _say(f"jaxbig {__version__}\n")
    elif command == "run":
        _run(rest)
    elif command == "data":
        _data(rest)
    elif command == "info":
        _info(rest)
    elif command == "compare":
        _compare(rest)
    elif command == "generate":
        _generate(rest)
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
        _say(_RUN_HELP)
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
        _say(_DATA_HELP)
        return
    if words[0] != "show":
        raise UsageError(f"data has no command {words[0]}; try `jaxbig data show PATH`")
    from jaxbig.show import parse, show

    show(parse(words[1:]))


def _info(words: list[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        _say(_INFO_HELP)
        return
    from jaxbig.info import info

    info(words)


def _compare(words: list[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        _say(_COMPARE_HELP)
        return
    from jaxbig.compare import compare

    compare(words)


def _generate(words: list[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        _say(_GENERATE_HELP)
        return
    from jaxbig.write import write

    write(words)


def _peft(words: list[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        _say(_PEFT_HELP)
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
