"""The main job, small: the same bits twice, and the same bits after kills and ``--resume``."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from jaxbig.cli import main

ROOT = Path(__file__).parent.parent
SMALL = ["--epochs", "2", "--steps", "6", "--seeds", "2"]


@pytest.mark.parametrize("words", [["--epochs", "-1"], ["--steps", "0"], ["--seeds", "0"], ["--seed", "-1"],
                                   ["--seed", "9" * 20], ["--workdir", ""], ["--workdir", __file__]])  # fmt: skip
def test_mistakes_are_told_before_any_work(words, capsys):
    assert main(["run", str(ROOT / "experiments" / "quickstart.py"), *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"jaxbig: error: {words[0]}")


def start(workdir: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "jaxbig", "run", str(ROOT / "experiments" / "quickstart.py"), *SMALL]
    return subprocess.Popen(
        [*command, "--workdir", str(workdir), *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "120"},
    )  # fmt: skip


def finish(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out[-2000:]
    return out


def outcome(workdir: Path) -> tuple[dict, bytes]:
    return json.loads((workdir / "results.json").read_text()), (workdir / "report.html").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[dict, bytes]:
    workdir = tmp_path_factory.mktemp("whole")
    finish(start(workdir))
    return outcome(workdir)


@pytest.mark.slow
def test_it_tells_what_it_promises(whole):
    results, report = whole
    names = [row["model"] for row in results["table"]]
    assert names[0] == "teacher"
    assert {"pruned 80%", "int8", "int4", "LoRA over int4 over 2:4", "student, distilled, no labels"} <= set(names)
    assert {(p["method"], p["labels"]) for p in results["labels"]} == {
        (method, k) for method in ("from scratch", "full", "LoRA", "BitFit", "head only") for k in (5, 10, 25)
    }
    assert results["export"]["same bits"]
    row = {row["model"]: row for row in results["table"]}
    assert row["teacher"]["trained"] >= 8 * row["student, all labels"]["trained"]
    assert row["int4"]["bytes"] < row["int8"]["bytes"] < row["teacher"]["bytes"] / 3
    assert b"<svg" in report


@pytest.mark.slow
def test_twice_the_same_bits(whole, tmp_path):
    finish(start(tmp_path))
    assert outcome(tmp_path) == whole


@pytest.mark.slow
def test_killed_and_resumed_the_same_bits(whole, tmp_path):
    """SIGKILL at random moments, again and again with --resume, until a run gets through."""
    chance, kills = random.Random(0), 0
    while True:
        process = start(tmp_path, *(["--resume"] if kills else []))
        try:
            out, _ = process.communicate(timeout=chance.uniform(12, 40) if kills < 4 else 900)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    assert process.returncode == 0, out[-2000:]
    assert kills > 0, "no run was killed: the machine is too fast for this test's times; shorten them"
    assert outcome(tmp_path) == whole
