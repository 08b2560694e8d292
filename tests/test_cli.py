"""The `jaxbig` command as a user meets it: in a process of its own, by its exit codes and what it prints."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxbig import __version__
from jaxbig.cli import main
from jaxbig.experiment import load, parse

ROOT = Path(__file__).resolve().parents[1]

GOOD = '''\
"""Counts to the number of epochs.

Command: jaxbig run trial.py
"""

import dataclasses
import pathlib
import sys
import typing

from jaxbig.errors import UsageError, UserError


@dataclasses.dataclass(frozen=True)
class Optim:
    rate: float = 0.001
    """Learning rate at its peak."""


@dataclasses.dataclass(frozen=True)
class Config:
    epochs: int = 5
    """Passes over the training data."""
    workdir: pathlib.Path | None = None
    """Where checkpoints go."""
    kind: typing.Literal["cnn", "vit"] = "cnn"
    resume: bool = False
    size: tuple[int, int] = (8, 8)
    optim: Optim = Optim()
    fail: str = ""


def broken(message):
    raise ValueError(message)


def main(config: Config) -> None:
    match config.fail:
        case "user":
            raise UserError("runs/a: damaged checkpoint;\\n  start again without --resume")
        case "usage":
            raise UsageError("--size (8, 8) does not divide by 3; choose 9")
        case "bug":
            broken("shapes (3,) and\\n(4,) do not fit")
        case "silent":
            raise AssertionError
        case "long":
            broken("x" * 100_000)
        case "exit":
            sys.exit(7)
        case "wait":
            import time

            print("ready", flush=True)
            time.sleep(60)
    print(config)
'''

FILES = {
    "trial.py": GOOD,
    "no_config.py": "def main(config): pass\n",
    "no_main.py": "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Config: pass\n",
    "plain.py": "class Config: pass\ndef main(config): pass\n",
    "thawed.py": "import dataclasses\n@dataclasses.dataclass\nclass Config: pass\ndef main(config): pass\n",
    "thawed_child.py": (
        "class Config: pass\nimport dataclasses\nConfig = dataclasses.dataclass(Config)\n"
        "class Config(Config): pass\ndef main(config): pass\n"
    ),
    "syntax.py": "import os\n\ndef main(config:\n    pass\n",
    "raises.py": "import os\n\nraise RuntimeError('no data here')\n",
    "no_module.py": "import a_module_that_is_not_there\n",
    "needs.py": (
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Config:\n    data: str\n"
        "def main(config): pass\n"
    ),
    "reserved.py": (
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Config:\n    debug: bool = False\n"
        "def main(config): pass\n"
    ),
    "untyped.py": (
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Config:\n    f: object = print\n"
        "    g: 'Nowhere' = 1\ndef main(config): pass\n"
    ),
    "notes.txt": "not Python\n",
    "null.py": "import os\n\x00\n",
    "checks.py": (
        "import dataclasses, math\nfrom jaxbig.experiment import check_range, make_folder\n"
        "@dataclasses.dataclass(frozen=True)\nclass Config:\n"
        "    most_epochs: int = 5\n    seed: int = 0\n    workdir: str = 'out'\n"
        "    def __post_init__(self):\n"
        "        check_range(self, 1, math.inf, 'most_epochs')\n        check_range(self, 0, 9, 'seed')\n"
        "def main(config):\n    make_folder(config.workdir)\n"
    ),
}

# command line, exit code, what the one line must hold (a regular expression)
BAD = {
    "no command": ("", 2, "no command; .*jaxbig run FILE"),
    "unknown command": ("rnu trial.py", 2, "unknown command rnu; did you mean run"),
    "unknown option of ours": ("--verison", 2, "unknown option --verison; did you mean --version"),
    "no file": ("run", 2, "no file; .*jaxbig run FILE"),
    "option before file": ("run --epochs 3 trial.py", 2, "the file comes before --epochs"),
    "file not there": ("run trail.py", 2, r"trail\.py: no such file; did you mean trial\.py"),
    "folder not there": ("run nowhere/a.py", 2, r"nowhere/a\.py: no such file"),
    "folder": ("run .", 2, "is a folder"),
    "empty name": (["run", ""], 2, "the file's name is empty"),
    "device": ("run /dev/null", 2, "/dev/null: not a Python file"),
    "null byte": ("run null.py", 1, r"error: null\.py(:\d+)?: SyntaxError: .*null byte"),
    "two dashes": ("run trial.py -- --epochs 1", 2, "'--' is not needed: options follow the file"),
    "out of range": ("run checks.py --most-epochs -1", 2, "error: --most-epochs -1: give at least 1$"),
    "beyond the range": ("run checks.py --seed 99999999999999999999", 2, "--seed 9+: give 0 to 9$"),
    "unmakeable folder": (
        "run checks.py --workdir /proc/nope",
        2,
        r"--workdir /proc/nope: cannot be made a folder .*\(",
    ),
    "file as folder": ("run checks.py --workdir notes.txt", 2, r"--workdir notes\.txt: cannot be made .*exists"),
    "below a file": ("run checks.py --workdir notes.txt/a", 2, r"--workdir notes\.txt/a: cannot be made"),
    "empty folder": (["run", "checks.py", "--workdir", ""], 2, "--workdir: is empty; name a folder"),
    "not Python": ("run notes.txt", 2, r"notes\.txt: not a Python file"),
    "no Config": ("run no_config.py", 2, r"no_config\.py: no class Config"),
    "no main": ("run no_main.py", 2, r"no_main\.py: no function main"),
    "no dataclass": ("run plain.py", 2, r"dataclass\(frozen=True\)"),
    "not frozen": ("run thawed.py", 2, r"thawed\.py: Config is not frozen"),
    "inherits a thawed one": ("run thawed_child.py", 2, r"thawed_child\.py: Config is not frozen"),
    "reserved field": ("run reserved.py", 2, r"Config\.debug: .*another name"),
    "unresolvable type": ("run untyped.py", 1, "NameError: .*Nowhere"),
    "syntax error": ("run syntax.py", 1, r"syntax\.py:3: SyntaxError"),
    "raises at import": ("run raises.py", 1, r"RuntimeError: no data here \(raises\.py:3; rerun with --debug"),
    "missing module": ("run no_module.py", 1, r"ModuleNotFoundError: .*a_module_that_is_not_there.*no_module\.py:1"),
    "missing option": ("run needs.py", 2, "--data"),
    "unknown option": ("run trial.py --epoch 3", 2, r"unknown option --epoch; did you mean --epochs\?"),
    "unknown option, underscores": ("run trial.py --work_dirs a", 2, r"did you mean --workdir\?"),
    "unknown option, equals": ("run trial.py --epoch=3", 2, r"unknown option --epoch; did you mean --epochs\?"),
    "unknown nested option": ("run trial.py --optim.rat 3", 2, r"did you mean --optim\.rate\?"),
    "unlike any option": ("run trial.py --zzzzzzzz 3", 2, "unknown option --zzzzzzzz; `--help` lists them"),
    "ill-typed integer": ("run trial.py --epochs many", 2, "--epochs: .*'many'; expected --epochs INT"),
    "ill-typed nested float": ("run trial.py --optim.rate fast", 2, r"--optim\.rate: .*'fast'; expected --optim\.rate"),
    "missing value": ("run trial.py --epochs", 2, "--epochs"),
    "too few values": ("run trial.py --size 8", 2, "--size.* 2 "),
    "too many values": ("run trial.py --epochs 3 4", 2, "unexpected argument '4'"),
    "no such choice": ("run trial.py --kind rnn", 2, "rnn.*--kind.*cnn.*vit"),
    "value for a flag": ("run trial.py --resume yes", 2, "--resume takes no value, .*--no-resume"),
    "stray word": ("run trial.py more", 2, "unexpected argument 'more'"),
    "user error": ("run trial.py --fail user", 1, "runs/a: damaged checkpoint; start again without --resume"),
    "usage error": ("run trial.py --fail usage", 2, "does not divide by 3; choose 9"),
    "bug": (
        "run trial.py --fail bug",
        1,
        r"ValueError: shapes \(3,\) and \(4,\) do not fit \(trial\.py:\d+; .*--debug",
    ),
    "bug without words": ("run trial.py --fail silent", 1, r"AssertionError \(trial\.py:\d+; .*--debug"),
    "bug with too many words": ("run trial.py --fail long", 1, r"ValueError: x+ \.\.\. \(trial\.py"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def jaxbig(line, folder, **env):
    return subprocess.run(
        [sys.executable, "-m", "jaxbig", *(line.split() if isinstance(line, str) else line)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("line", "code", "says"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_line(line, code, says, folder):
    done = jaxbig(line, folder)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("jaxbig: error: ")
    assert re.search(says, done.stderr), done.stderr
    assert not re.search("Traceback|[│╭╰─]", done.stderr)
    assert len(done.stderr) < 1000


def test_a_narrow_terminal_does_not_break_the_line(folder):
    done = jaxbig("run trial.py --epochs many", folder, COLUMNS="30")
    assert re.search("--epochs: .*'many'; expected --epochs INT", done.stderr)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("line", ["--debug run trial.py --fail bug", "run trial.py --fail bug --debug"])
def test_debug_shows_the_traceback(line, folder):
    done = jaxbig(line, folder)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "in broken" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("jaxbig: error: ValueError")


def test_runs_with_fields_from_the_command_line(folder):
    done = jaxbig("run trial.py --epochs 3 --kind vit --resume --size 4 6 --optim.rate=0.5", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "epochs=3, workdir=None, kind='vit', resume=True, size=(4, 6), optim=Optim(rate=0.5)" in done.stdout


def test_the_exit_code_of_an_experiment_is_kept(folder):
    assert jaxbig("run trial.py --fail exit", folder).returncode == 7


def test_help_of_an_experiment_shows_defaults_and_meanings(folder):
    done = jaxbig("run trial.py --help", folder)
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("Counts to the number of epochs.", "Command: jaxbig run trial.py", "--epochs INT"):
        assert text in done.stdout
    assert re.search(r"Passes over the training data\.\s+\(default: 5\)", done.stdout)
    assert re.search(r"Learning rate at its peak\.\s+\(default: 0\.001\)", done.stdout)


@pytest.mark.parametrize(
    ("line", "shows"),
    [
        ("--help", "exit codes: 0 done, 1 it failed, 2 the command line is wrong"),
        ("-h", "run FILE --help"),
        ("--version", f"jaxbig {__version__}\n"),
        ("run --help", "usage: jaxbig run FILE"),
    ],
)
def test_help_and_version(line, shows, capsys):
    assert main(line.split()) == 0
    captured = capsys.readouterr()
    assert shows in captured.out
    assert captured.err == ""


def test_the_smallest_experiment_of_the_help_runs(capsys, tmp_path):
    main(["run", "--help"])
    text = capsys.readouterr().out.split("A smallest experiment:\n")[1]
    file = tmp_path / "smallest.py"
    file.write_text("\n".join(line.removeprefix("  ") for line in text.splitlines()))
    assert main(["run", str(file), "--epochs", "2"]) == 0
    assert capsys.readouterr().out == "2\n"


def test_control_c_ends_with_130_and_one_line(folder):
    # A shell starts what it puts in the background with SIGINT ignored, and children would inherit that.
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('jaxbig', run_name='__main__', alter_sys=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", "trial.py", "--fail", "wait"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "jaxbig: interrupted\n"


def test_a_closed_pipe_is_no_complaint(folder):
    words = [sys.executable, "-m", "jaxbig", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(words, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize("words", [["--help"], ["run", "trial.py", "--help"]])
def test_help_imports_nothing_heavy(words, folder):
    code = (
        "import sys\nfrom jaxbig.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'torch', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_experiments_beside_each_other_can_share_a_module(tmp_path):
    (tmp_path / "shared_with_trial.py").write_text("EPOCHS = 9\n")
    (tmp_path / "sharing.py").write_text(
        "import dataclasses\nfrom shared_with_trial import EPOCHS\n\n"
        "@dataclasses.dataclass(frozen=True)\nclass Config:\n    epochs: int = EPOCHS\n\ndef main(config): pass\n"
    )
    assert parse(load(tmp_path / "sharing.py"), []).epochs == 9


def test_a_file_named_like_an_installed_module_hides_nothing(tmp_path):
    (tmp_path / "json.py").write_text(GOOD)
    experiment = load(tmp_path / "json.py")
    assert sys.modules["json"].__file__ != str(experiment.path)
    assert parse(experiment, ["--epochs", "2"]).epochs == 2
