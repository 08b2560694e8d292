"""Killed at any point of a save, or at any moment, a run goes on and ends in an uninterrupted run's bits."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fault_run import POINTS

from jaxbig import checkpoint
from jaxbig.history import TIMES

PROGRAM = Path(__file__).with_name("fault_run.py")
ROOT = PROGRAM.parents[1]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("compiled"))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": cache,
                                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip

    def start(*words):
        command = [sys.executable, str(PROGRAM), *map(str, words)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    told, _ = (process := start(folder, "new")).communicate(timeout=300)
    assert process.returncode == 0, told[-3000:]
    return folder


def untimed(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def same_end(one, two):
    ours, theirs = (checkpoint.restore(folder / "checkpoints") for folder in (one, two))
    assert list(ours) == list(theirs)
    for path in ours:
        if path != "key":
            assert np.asarray(ours[path]).tobytes() == np.asarray(theirs[path]).tobytes(), path
    assert untimed(one) == untimed(two)
    assert checkpoint.steps(one / "checkpoints") == checkpoint.steps(two / "checkpoints")


@pytest.mark.slow  # `test_kill.py` kills a run in the fast tier
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_of_a_save(start, whole, tmp_path, point):
    process = start(tmp_path, "new", point)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, told[-3000:]
    left = checkpoint.steps(tmp_path / "checkpoints")
    assert left, "the save that was complete before is lost"
    assert set(left) <= {3, 6}
    told, _ = (process := start(tmp_path, "resume")).communicate(timeout=300)
    assert process.returncode == 0, told[-3000:]
    same_end(tmp_path, whole)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(start, whole, tmp_path):
    """Each time the run is started anew, or resumed, and killed after a time drawn from what a whole one takes."""
    chance, kills = random.Random(0), 0
    while kills < 20:
        resume = checkpoint.latest(tmp_path / "checkpoints") is not None
        process = start(tmp_path, "resume" if resume else "new")
        try:
            told, _ = process.communicate(timeout=chance.uniform(1.0, 6.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, told[-3000:]
        same_end(tmp_path, whole)
        for path in sorted(tmp_path.rglob("*"), reverse=True):  # it got through: once more from the start
            path.unlink() if path.is_file() else path.rmdir()
    told, _ = (process := start(tmp_path, "resume")).communicate(timeout=300)
    assert process.returncode == 0, told[-3000:]
    same_end(tmp_path, whole)
