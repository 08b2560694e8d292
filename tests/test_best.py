"""The best checkpoint read back: what the run was at that line of its history, not at its end."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.averaging import view
from jaxbig.best import at_best, variables
from jaxbig.data import Loader
from jaxbig.errors import UserError
from jaxbig.evaluate import evaluate
from jaxbig.objective import classify
from jaxbig.optim import Optimizer
from jaxbig.train import Run, Task, fit
from jaxbig.tune.full import full

RNG = np.random.default_rng(0)
DATA = {"image": RNG.normal(size=(32, 4)).astype(np.float32), "label": RNG.integers(0, 3, 32)}
HELD_OUT = Loader(
    {"image": RNG.normal(size=(16, 4)).astype(np.float32), "label": RNG.integers(0, 3, 16)}, 16, remainder="pad"
)


@pytest.mark.parametrize("ema", [None, pytest.param(0.5, marks=pytest.mark.slow)])
def test_it_scores_what_the_best_line_says(tmp_path, ema):
    module = nn.Dense(3)
    split = full().init(None, {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}, {})
    judge = classify(module, train=False)
    averages: dict = {"view": view} if ema else {}
    optimizer = Optimizer("sgd", 3.0, ema=ema).build()
    task = Task(classify(module), full(), optimizer, Loader(DATA, 8), (judge, HELD_OUT), **averages)
    run = Run(6, tmp_path, quiet=True, keep_last=1, keep_best="min:val_loss")
    fitted = fit(task, split, jax.random.key(0), run)
    losses = [line["val_loss"] for line in fitted.history]
    assert losses[-1] > min(losses), "the last line is the best one: the test would tell nothing"
    best = at_best(task, fitted, run)
    found = evaluate(judge, variables(task, best)["params"], HELD_OUT)
    assert found["loss"] == pytest.approx(min(losses), rel=1e-6)
    assert best.history == fitted.history


def test_a_run_that_kept_none():
    with pytest.raises(UserError, match="keeps no best checkpoint"):
        at_best(None, None, Run(1, quiet=True))
