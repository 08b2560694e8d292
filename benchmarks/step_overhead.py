"""The trainer's step against the same step written by hand in flax and optax, for a CNN and a ViT.

    python benchmarks/step_overhead.py [--calls 300] [--no-record]

Prints FLOPs, bytes accessed and temporary bytes of both compiled programs, and the microseconds after which a call of
each returns (Python and dispatch, on an idle queue, the two interleaved). Appends one line to
benchmarks/results/step_overhead.jsonl. `tests/test_cost.py` fails where the compiled figures differ by 1%.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cost import measured  # noqa: E402
from jaxbig import full  # noqa: E402
from jaxbig.models import CNN, ViT  # noqa: E402
from jaxbig.objective import classify  # noqa: E402
from jaxbig.optim import Optimizer  # noqa: E402
from jaxbig.step import init_state, make_step  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "step_overhead.jsonl"
MODELS = {
    "CNN": CNN(channels=(32, 64), hidden=128),
    "ViT": ViT(num_classes=10, patch=4, width=192, layers=4, heads=3),
}


def programs(model: Any, size: int = 32):
    """((our step, its arguments), (the step by hand, its arguments)); the states are their first arguments."""
    batch = {"image": jnp.zeros((size, 28, 28, 1)), "label": jnp.zeros(size, jnp.int32)}
    params = jax.jit(model.init)(jax.random.key(0), batch["image"][:1])["params"]
    optimiser, plain = Optimizer("adamw", 1e-3, weight_decay=1e-4).build(), optax.adamw(1e-3, weight_decay=1e-4)
    base, state = init_state(full().init(jax.random.key(0), params, {}), optimiser, jax.random.key(0))
    ours = make_step(classify(model), full(), optimiser)

    def theirs(params, state, step, key, batch):
        def loss(params):
            rngs = {"dropout": jax.random.fold_in(key, step)}
            logits = model.apply({"params": params}, batch["image"], train=True, rngs=rngs)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.mean(), (losses.sum(), (logits.argmax(-1) == batch["label"]).sum())

        grads, metrics = jax.grad(loss, has_aux=True)(params)
        updates, state = plain.update(grads, state, params)
        return optax.apply_updates(params, updates), state, step + 1, metrics

    copied = jax.tree.map(jnp.copy, params)
    given = (copied, plain.init(copied), jnp.int32(0), jax.random.key(0), batch)
    return (ours, (base, state, batch)), (jax.jit(theirs, donate_argnums=(0, 1, 2)), given)


def dispatch(model: Any, calls: int) -> dict[str, float]:
    """Medians of the microseconds after which a call returns, our step and the one by hand in turn."""
    (ours, (base, state, batch)), (theirs, (params, other, step, key, _)) = programs(model)
    spent: dict[str, list[float]] = {"jaxbig": [], "by hand": []}
    for call in range(calls + 5):
        since = time.perf_counter()
        state, metrics = ours(base, state, batch)
        took = time.perf_counter() - since
        jax.block_until_ready((state.step, metrics))
        since = time.perf_counter()
        params, other, step, sums = theirs(params, other, step, key, batch)
        took_ = time.perf_counter() - since
        jax.block_until_ready((step, sums))
        if call >= 5:
            spent["jaxbig"].append(1e6 * took)
            spent["by hand"].append(1e6 * took_)
    return {name: round(statistics.median(values), 1) for name, values in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    table = {}
    for name, model in MODELS.items():
        (ours, given), (theirs, given_) = programs(model)
        figures = {"jaxbig": measured(ours, *given)[1], "by hand": measured(theirs, *given_)[1]}
        times = dispatch(model, options.calls)
        table[name] = {way: figures[way] | {"dispatch_us": times[way]} for way in figures}
        for way, row in table[name].items():
            print(f"{name:4} {way:8}", *(f"{key} {value:>14,.0f}" for key, value in row.items()))
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python benchmarks/step_overhead.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "python": sys.version.split()[0],
        "figures": table,
    }
    if not options.no_record:
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
