"""What lifting costs outside the compiled program: tracing, compiling and dispatching a LoRA training step.

    python benchmarks/lift_overhead.py [--rounds 15] [--no-record]

One model, four steps, measured in turns: LoRA lifted onto the unedited linen model and written into its modules by
hand; LoRA lifted onto the unedited plain jax model and written into it by hand. Each step is forward, backward and
adamw on LoRA's factors. Prints a table and appends one line to benchmarks/results/lift_overhead.jsonl.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from pathlib import Path

import flax
import flax.linen as nn
import jax
import optax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.by_hand import (  # noqa: E402
    ALPHA,
    D,
    F,
    H,
    K,
    L,
    Linen,
    R,
    V,
    example,
    linen_loss,
    loss_by_hand,
    loss_of,
    nest,
    parameters,
)  # fmt: skip
from jaxbig import lift, lora, usage  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "lift_overhead.jsonl"
OPTIMISER = optax.adamw(1e-3)


class LoraDense(nn.Module):
    """A linear layer with LoRA written into it; the factors live in a collection of their own."""

    features: tuple[int, ...]
    axes: int = 1

    @nn.compact
    def __call__(self, x):
        axis = tuple(range(-self.axes, 0))
        y = nn.DenseGeneral(self.features, axis=axis, name="base")(x)
        a = self.param_like("a", (*x.shape[-self.axes :], R))
        b = self.param_like("b", (R, *self.features))
        h = jax.lax.dot_general(x, a, ((tuple(x.ndim + i for i in axis), tuple(range(self.axes))), ((), ())))
        return y + jax.lax.dot_general(h, b * (ALPHA / R), (((h.ndim - 1,), (0,)), ((), ())))

    def param_like(self, name, shape):
        return self.variable("lora", name, lambda: jax.numpy.zeros(shape)).value


class LoraLayer(nn.Module):
    """`benchmarks.by_hand.Layer`, edited."""

    @nn.compact
    def __call__(self, x_BTD, _):
        y_BTD = nn.LayerNorm(name="norm1")(x_BTD)
        q, k, v = (LoraDense((H, K), name=name)(y_BTD) for name in ("query", "key", "value"))
        y = nn.dot_product_attention(q, k, v, mask=nn.make_causal_mask(y_BTD[..., 0]))
        x_BTD = x_BTD + LoraDense((D,), 2, name="out")(y)
        y_BTF = nn.gelu(LoraDense((F,), name="up")(nn.LayerNorm(name="norm2")(x_BTD)))
        return x_BTD + LoraDense((D,), name="down")(y_BTF), None


class LoraLinen(nn.Module):
    """`benchmarks.by_hand.Linen`, edited."""

    @nn.compact
    def __call__(self, ids_BT):
        x_BTD = nn.Embed(V, D, name="embed")(ids_BT)
        layers = nn.scan(
            LoraLayer, variable_axes={"params": 0, "lora": 0}, split_rngs={"params": True}, length=L
        )  # fmt: skip
        x_BTD, _ = layers(name="layers")(x_BTD, None)
        return nn.Dense(V, name="head")(nn.LayerNorm(name="norm")(x_BTD))


def step_of(loss):
    """A fresh training step, so that no cache of traces helps, over ``loss(train, frozen, ids)``."""

    def step(train, optimiser, frozen, ids):
        value, grads = jax.value_and_grad(lambda train: loss(train, frozen, ids))(train)
        updates, optimiser = OPTIMISER.update(grads, optimiser, train)
        return optax.apply_updates(train, updates), optimiser, value

    return jax.jit(step)


def cases():
    """Name -> (loss, train, frozen)."""
    ids, params = example(), parameters(jax.random.key(0))
    uses = usage(lambda p, x: Linen().apply({"params": p}, x), params, ids)
    method = lora(rank=R, alpha=ALPHA, where="layers/.*kernel")
    split = method.init(jax.random.key(2), params, uses)
    edited = LoraLinen().init(jax.random.key(0), ids)

    def adapted(train, frozen):
        return method.apply(frozen._replace(train=train))

    def by_flax(train, frozen, ids):
        return loss_of(LoraLinen().apply({"params": frozen, "lora": train}, ids), ids)

    return {
        "linen, lifted": (lambda t, f, ids: lift(linen_loss)(adapted(t, f), ids), split.train, split),
        "linen, by hand": (by_flax, edited["lora"], edited["params"]),
        "jax, lifted": (lambda t, f, ids: lift(loss_by_hand)(adapted(t, f), None, ids), split.train, split),
        "jax, by hand": (lambda t, f, ids: loss_by_hand(f, t, ids), nest(split.train), params),
    }


def clock(function, *args):
    """CPU milliseconds of this process, and the result."""
    start = time.process_time()
    result = function(*args)
    return 1e3 * (time.process_time() - start), result


def measure(rounds: int, dispatches: int = 300):
    """Name -> medians: trace and compile (ms), dispatch (microseconds of Python a step on an idle device queue)."""
    ids, table, compiled = example(), {}, {}
    todo = cases()
    for round_ in range(rounds + 2):
        for name, (loss, train, frozen) in todo.items():
            arguments = (train, OPTIMISER.init(train), frozen, ids)
            row = table.setdefault(name, {"trace_ms": [], "compile_ms": [], "dispatch_us": []})
            spent, traced = clock(lambda loss=loss, arguments=arguments: step_of(loss).trace(*arguments))
            if round_ >= 2:  # the first rounds import and fill jax's own caches
                row["trace_ms"].append(spent)
            if round_ % 5 == 2:
                row["compile_ms"].append(clock(traced.lower().compile)[0])
    for name, (loss, train, frozen) in todo.items():
        compiled[name] = (step_of(loss), (train, OPTIMISER.init(train), frozen, ids))
        jax.block_until_ready(compiled[name][0](*compiled[name][1]))
    for _ in range(dispatches):
        for name, (step, arguments) in compiled.items():
            start = time.perf_counter()
            result = step(*arguments)
            table[name]["dispatch_us"].append(1e6 * (time.perf_counter() - start))
            jax.block_until_ready(result)
    return {name: {k: statistics.median(v) for k, v in row.items()} for name, row in table.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-record", action="store_true", help="only print")
    options = parser.parse_args()
    table = measure(options.rounds)
    print(f"{'':16}{'trace ms':>10}{'compile ms':>12}{'dispatch us':>13}")
    for name, row in table.items():
        print(f"{name:16}{row['trace_ms']:10.1f}{row['compile_ms']:12.0f}{row['dispatch_us']:13.0f}")
    ratios = {
        f"{kind}_{column}": table[f"{kind}, lifted"][column] / table[f"{kind}, by hand"][column]
        for kind in ("linen", "jax")
        for column in ("trace_ms", "compile_ms", "dispatch_us")
    }
    for name, ratio in ratios.items():
        print(f"lifted / by hand, {name:18}{ratio:6.2f}")
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/lift_overhead.py " + " ".join(sys.argv[1:]),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "python": sys.version.split()[0],
        "medians": {name: {k: round(v, 2) for k, v in row.items()} for name, row in table.items()},
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
    }
    if not options.no_record:
        RESULTS.parent.mkdir(exist_ok=True)
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
