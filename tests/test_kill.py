"""Killed at any moment, a run goes on from the last complete checkpoint and ends in the same bits."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxbig import checkpoint
from jaxbig.history import TIMES

PROGRAM = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
from jaxbig.data import Loader
from jaxbig.models import MLP
from jaxbig.objective import classify
from jaxbig.optim import Optimizer
from jaxbig.train import Run, Task, fit
from jaxbig.tune.full import full

workdir, resume, pause = sys.argv[1], sys.argv[2] == "resume", float(sys.argv[3])
generator = np.random.default_rng(0)
data = {"image": generator.normal(size=(24, 6)).astype(np.float32), "label": generator.integers(0, 3, 24)}

class Slow(Loader):
    def stream(self, position, epochs):
        for batch in super().stream(position, epochs):
            print("at", position.epoch, position.step, flush=True)
            if pause and position == (1, 2):
                time.sleep(pause)
            yield batch
            position = self.advance(position)

model = MLP(3, (8,), dropout=0.3)
params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 6)))["params"]
task = Task(classify(model), full(), Optimizer("adamw", 1e-2).build(), Slow(data, 4))
fit(task, full().init(jax.random.key(0), params, {}), jax.random.key(0), Run(3, workdir, resume, ahead=0))
"""


def start(workdir, resume, pause=0.0):
    command = [sys.executable, "-c", PROGRAM, str(workdir), "resume" if resume else "new", str(pause)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_until(process, words):
    for line in process.stdout:
        if line.strip() == words:
            return
    raise AssertionError(process.stderr.read()[-3000:])


def finish(workdir, resume):
    out, err = start(workdir, resume).communicate()
    assert "epoch 3/3" in out, err[-3000:]


def lines(workdir):
    parsed = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in parsed]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nobody has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, resume=False)
    return folder


@pytest.mark.parametrize(
    ("number", "code", "saved"),
    [
        (signal.SIGKILL, -9, (None, 6)),  # the save of the first epoch may still be on its way
        pytest.param(signal.SIGTERM, 143, (9,), marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, None, (9,), marks=pytest.mark.slow),
    ],
)
def test_killed_in_mid_epoch_it_ends_in_the_same_bits(tmp_path, whole, number, code, saved):
    process = start(tmp_path, resume=False, pause=1.0)
    read_until(process, "at 1 2")
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode != 0
    assert code is None or process.returncode == code, err[-3000:]
    assert checkpoint.latest(tmp_path / "checkpoints") in saved
    assert ("stopped in epoch 2 after step 3; resume goes on from here" in out) == (number != signal.SIGKILL)
    finish(tmp_path, resume=True)
    assert lines(tmp_path) == lines(whole)
    ours, theirs = (checkpoint.restore(folder / "checkpoints") for folder in (tmp_path, whole))
    assert list(ours) == list(theirs)
    for path, leaf in ours.items():
        if path == "key":
            continue
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(theirs[path]), err_msg=path)
