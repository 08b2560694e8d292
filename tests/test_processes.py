"""Several processes as one: bits survive the way, and evaluation of shares is that of the whole."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig import processes
from jaxbig.data import Loader
from jaxbig.evaluate import collect, evaluate
from jaxbig.metrics import classification_report
from jaxbig.objective import Aux, classify

ROOT = Path(__file__).parent.parent
N = 11


def test_arrays_survive_as_bytes():
    arrays = {
        "double": np.array([0.1, -0.0, np.nan]),
        "half": np.asarray(jnp.array([[1.5, 2.5]], jnp.bfloat16)),
        "long": np.array([2**60], np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(True),
        "strided": np.arange(6).reshape(2, 3).T,
    }
    found = processes.from_bytes(processes.to_bytes(arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_one_process_is_all(monkeypatch):
    assert processes.gather(b"ab") == [b"ab"]
    assert processes.is_whole([])
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    assert not processes.is_whole({"loss": jnp.ones(())})


def shares(monkeypatch, count: int):
    """Evaluate as each of `count` processes in turn; what they gather is kept and given back."""
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=N), "label": np.arange(N)}
    cuts = np.linspace(0, N, count + 1).astype(int)

    def run(process):
        data = Loader({k: v[cuts[process] : cuts[process + 1]] for k, v in arrays.items()}, 3, remainder="pad")

        def measure(batch):
            keep = batch["mask"]
            matrix = np.zeros((2, 2))
            np.add.at(matrix, (batch["label"] % 2, (batch["x"] > 0).astype(int)), keep)
            return Aux({"loss": (keep @ batch["x"], keep.sum()), "confusion": (matrix, keep.sum())}, {}, dict(batch))

        return collect(measure, data, outputs=True)

    monkeypatch.setattr(processes.jax, "process_count", lambda: count)
    sent = []
    for process in range(count):
        blobs = []
        monkeypatch.setattr(processes, "gather", lambda blob, blobs=blobs: (blobs.append(blob), [blob])[1])
        run(process)
        sent.append(blobs)
    rounds = iter(zip(*sent, strict=True))
    monkeypatch.setattr(processes, "gather", lambda blob: list(next(rounds)))
    return arrays, run(0)


@pytest.mark.parametrize("count", [2, 3])
def test_shares_together_are_the_whole(monkeypatch, count):
    arrays, (totals, outputs) = shares(monkeypatch, count)
    assert totals.sums["loss"] == [pytest.approx(arrays["x"].sum(), abs=1e-12), N]
    matrix = np.zeros((2, 2))
    np.add.at(matrix, (arrays["label"] % 2, (arrays["x"] > 0).astype(int)), 1)
    assert totals.sums["confusion"] == [matrix.tolist(), N]
    np.testing.assert_array_equal(outputs["label"], arrays["label"])
    np.testing.assert_array_equal(outputs["x"], arrays["x"])  # float64, bit for bit


PROGRAM = """
import json, sys
import jax, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1]))
import flax.linen as nn, jax.numpy as jnp
from jax.sharding import AxisType
from jaxbig.data import Loader
from jaxbig.evaluate import collect, evaluate
from jaxbig.metrics import classification_report
from jaxbig.objective import Aux, classify
from jaxbig.placement import over_mesh

me = jax.process_index()
rng = np.random.default_rng(0)
arrays = {"image": rng.normal(size=(11, 4)).astype(np.float32), "label": rng.integers(0, 3, 11)}
params = {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "bias": jnp.zeros(3)}
objective = classify(nn.Dense(3), train=False, confusion=True)
labels = []
def report(outputs):
    labels.append(outputs["label"].tolist())
    return classification_report(outputs["label"], outputs["logits"], only=["auc", "matthews"])
share = {name: array[:7] if me == 0 else array[7:] for name, array in arrays.items()}
shares = evaluate(objective, params, Loader(share, 3, remainder="pad"), report=report)

mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
place = over_mesh(mesh)
spread = place.state(jax.device_get(params))
measure = jax.jit(lambda params, batch: Aux(*objective(params, {}, batch, None)[1])._replace(vars={}))
totals, outputs = collect(
    lambda batch: measure(spread, place.batch(batch)), Loader(arrays, 4, remainder="pad"), outputs=True
)
over = totals.means() | report(outputs)
print(json.dumps({"shares": shares, "mesh": over, "labels": labels, "counts": totals.sums["loss"][1]}))
"""


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"image": rng.normal(size=(N, 4)).astype(np.float32), "label": rng.integers(0, 3, N)}
    params = {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "bias": jnp.zeros(3)}
    only = ["auc", "matthews"]
    expected = evaluate(
        classify(nn.Dense(3), train=False, confusion=True), params, Loader(arrays, 4, remainder="pad"),
        report=lambda outputs: classification_report(outputs["label"], outputs["logits"], only=only),
    )  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([sys.executable, str(program), str(i), port], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         text=True, env=environment)
        for i in range(2)
    ]  # fmt: skip
    for process in started:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        found = json.loads(out.splitlines()[-1])
        assert found["labels"] == [arrays["label"].tolist()] * 2
        assert found["counts"] == N
        for way in ("shares", "mesh"):
            assert found[way] == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}
