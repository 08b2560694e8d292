"""Four simulated devices: the mesh and pmap give what one device gives, without compiling twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import on_devices

from jaxbig.data import Loader
from jaxbig.errors import UserError
from jaxbig.models import MLP
from jaxbig.objective import classify
from jaxbig.optim import Optimizer
from jaxbig.train import Run, Task, fit
from jaxbig.tune.full import full

DEVICES = """
import dataclasses, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from jaxbig.data import Loader
from jaxbig.models import MLP
from jaxbig.objective import classify
from jaxbig.optim import Optimizer
from jaxbig.train import Run, Task, fit
from jaxbig.tune.full import full

assert jax.device_count() == 4
generator = np.random.default_rng(0)
data = {"image": generator.normal(size=(22, 6)).astype(np.float32), "label": generator.integers(0, 3, 22)}
model, traces = MLP(3, (8,)), []
params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 6)))["params"]
def counted(*arguments):
    traces.append(1)
    return classify(model)(*arguments)
held_out = (classify(model, train=False), Loader(data, 8, remainder="pad"))
task = Task(counted, full(), Optimizer("sgd", 0.1, momentum=0.9).build(), Loader(data, 8, remainder="pad"), held_out)
split = full().init(jax.random.key(0), params, {})
mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))
def run(**options):
    traces.clear()
    fitted = fit(task, split, jax.random.key(0), Run(epochs=2, quiet=True, **options))
    assert len(traces) == 1, (options, len(traces))
    return fitted
alone = run()
for options in ({"mesh": mesh}, {"pmap": True}):
    for workdir in (sys.argv[1] + "/" + str(len(options)) + next(iter(options)),):
        other = run(workdir=workdir, **options)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        a, b = ([line[name] for line in fitted.history] for fitted in (alone, other))
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=str(options))
    for name, leaf in other.split.train.items():
        np.testing.assert_allclose(leaf, alone.split.train[name], rtol=1e-4, atol=1e-6, err_msg=name)
    more = fit(task, split, jax.random.key(0), Run(epochs=3, quiet=True, workdir=workdir, resume=True, **options))
    assert len(more.history) == 3
print("fine")
"""


def test_mesh_and_pmap_equal_one_device(tmp_path):
    done = on_devices(4, "-c", DEVICES, str(tmp_path))
    assert done.stdout.strip() == "fine", done.stderr[-3000:]


def job(batch_size=4):
    data = Loader({"image": np.zeros((12, 6), np.float32), "label": np.zeros(12, np.int32)}, batch_size)
    model = MLP(3, (8,))
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 6)))["params"]
    return Task(classify(model), full(), Optimizer("sgd").build(), data), full().init(jax.random.key(0), params, {})


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (Run(pmap=True, mesh=jax.sharding.AbstractMesh((1,), ("data",))), "give one of them"),  # pyright: ignore[reportArgumentType]
        (Run(epochs=-1), "epochs=-1"),
        (Run(log_every=0), "log_every=0"),
    ],
)
def test_runs_that_make_no_sense_say_why(run, words):
    with pytest.raises(UserError, match=words):
        fit(*job(), jax.random.key(0), run)


def test_a_batch_that_devices_do_not_divide_is_named():
    from jaxbig.placement import _divides

    with pytest.raises(UserError, match="image has 6 examples, the mesh has 4 devices; use a multiple of 4"):
        _divides({"image": np.zeros((6, 2))}, 4, "the mesh has")
