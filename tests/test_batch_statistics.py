"""Statistics of BatchNorm measured anew: torch's own, from the same batches, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.averaging import view
from jaxbig.batch_statistics import with_batch_statistics
from jaxbig.data import Loader
from jaxbig.errors import UsageError, UserError
from jaxbig.job import Run, Task
from jaxbig.objective import classify
from jaxbig.optim import Optimizer
from jaxbig.train import fit
from jaxbig.tune.full import full


class Net(nn.Module):
    """Two BatchNorms of different momenta: the second's inputs depend on the first's mode."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(not train, momentum=0.9, name="first")(nn.Dense(4, name="hidden")(x))
        return nn.BatchNorm(not train, momentum=0.99, name="second")(nn.Dense(3, name="out")(jnp.tanh(x)))


class Counter(nn.Module):
    """What is in its collection is a sum."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        seen = self.variable("batch_stats", "seen", lambda: jnp.zeros(()))
        if train:
            seen.value += x.mean() ** 2
        return nn.Dense(3)(x)


def fitted(module):
    x = np.asarray(3 * jax.random.normal(jax.random.key(0), (24, 5)) + 1)
    data = Loader({"image": x, "label": np.arange(24) % 3}, 8)
    variables = module.init(jax.random.key(1), x)
    split = full().init(jax.random.key(2), variables["params"], {})
    optimizer = Optimizer("sgd", 0.3, ema=0.5).build()
    task = Task(classify(module), full(), optimizer, data, view=view)
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return task, fit(task, split, jax.random.key(0), Run(epochs=4, quiet=True), rest)


@pytest.mark.parity
def test_statistics_of_averaged_weights_are_torch_s():
    torch = pytest.importorskip("torch")
    task, run = fitted(Net())
    params = jax.tree.map(np.asarray, task.transform.apply(run.split))
    net = torch.nn.Sequential(
        torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4, eps=1e-5), torch.nn.Tanh(), torch.nn.Linear(4, 3),
        torch.nn.BatchNorm1d(3, eps=1e-5),
    )  # fmt: skip
    with torch.no_grad():
        for layer, name in ((net[0], "hidden"), (net[3], "out")):
            layer.weight.copy_(torch.tensor(params[name]["kernel"].T))
            layer.bias.copy_(torch.tensor(params[name]["bias"]))
        for layer, name in ((net[1], "first"), (net[4], "second")):
            layer.weight.copy_(torch.tensor(params[name]["scale"]))
            layer.bias.copy_(torch.tensor(params[name]["bias"]))
    batches = [torch.tensor(np.asarray(batch["image"])) for batch in task.data.epoch(0)]
    torch.optim.swa_utils.update_bn(batches, net)
    found = with_batch_statistics(task, run).vars["batch_stats"]
    for layer, name in ((net[1], "first"), (net[4], "second")):
        np.testing.assert_allclose(found[name]["mean"], layer.running_mean, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(found[name]["var"], layer.running_var * 7 / 8, rtol=2e-3, atol=1e-5)
        before = run.vars["batch_stats"][name]["mean"]
        assert float(abs(found[name]["mean"] - before).max()) > 0.01


def test_as_many_batches_as_are_asked_for_and_the_rest_of_the_run_stays():
    task, run = fitted(Net())
    one = with_batch_statistics(task, run, steps=1)
    batch = next(iter(task.data.epoch(0)))
    hidden = nn.Dense(4).apply({"params": task.transform.apply(run.split)["hidden"]}, batch["image"])
    np.testing.assert_allclose(one.vars["batch_stats"]["first"]["mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)
    whole, twice = with_batch_statistics(task, run), with_batch_statistics(task, run, steps=6)
    assert one.state is run.state
    assert one.history is run.history
    assert float(abs(whole.vars["batch_stats"]["first"]["mean"] - twice.vars["batch_stats"]["first"]["mean"]).max()) > 0


def test_what_is_no_running_mean_is_refused():
    task, run = fitted(Counter())
    with pytest.raises(UserError, match="batch_stats/seen is no running mean: from 0, 1 and 2 a step leads to"):
        with_batch_statistics(task, run)
    with pytest.raises(UsageError, match="steps=0; use at least 1"):
        with_batch_statistics(task, run, steps=0)
    with pytest.raises(UsageError, match="no collection 'batch_stats'"):
        with_batch_statistics(task, run._replace(vars={}))
