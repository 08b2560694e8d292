"""Every way to tune a pretrained network, side by side: digits 5-9 from few labels, after digits 0-4 from all.

Question: what does each technique reach, and what does it cost, on one pretrained transformer? The head is trained by
all of them. For each technique a grid of learning rates x seeds runs as one vmapped program; the rate is chosen on held
out training images, the accuracy is that on the test images.

Data: scikit-learn's 1,797 digits of 8x8 pixels, as 16 tokens: each stands for the sum of 2x2 pixels, in 9 levels. For
pretraining they are moved by up to a pixel.
Command: jaxbig run experiments/vision/peft_digits.py --record
Time: 1,110 s, jax 0.12, on 2 cores that other programs kept busy.
Result: docs/tune-a-model.md has the table and the picture. With 39,845 parameters and 40 labels a class, training all
of them gives 0.916 (95%: 0.904 to 0.929), the best adapters 0.90 to 0.91 with a sixth of the parameters or fewer, the
head alone 0.816, training from scratch 0.849 (0.796 to 0.902). No technique is at chance.
"""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from rich.console import Console

from jaxbig import (
    adalora,
    atomic,
    bitfit,
    boft,
    bottleneck,
    chain,
    dora,
    fourierft,
    full,
    hra,
    ia3,
    lift,
    ln_tuning,
    loftq,
    loha,
    lokr,
    lora,
    oft,
    olora,
    pissa,
    plots,
    prefix,
    prompt,
    quantize,
    shira,
    trainable_tokens,
    usage,
    vera,
)
from jaxbig.data import k_shot, load_digits, select, split_fraction
from jaxbig.experiment import check_range, make_folder
from jaxbig.flops import flops
from jaxbig.models import Encoder, replace_head
from jaxbig.objective import classify
from jaxbig.optim import Optimizer
from jaxbig.record import record
from jaxbig.report import Report, terminal_table
from jaxbig.seeds import fit_sweep, grid, init_sweep, seed_batches
from jaxbig.significance import t_interval
from jaxbig.step import init_state, make_step, step_fn
from jaxbig.transform import Transform
from jaxbig.tree import nbytes

RECORDS = "benchmarks/results/peft_digits.jsonl"
HEAD = "head/.*"
TOKENS, PIXELS, MORE, CHANCE, STEPS = 9, 16, 8, 0.2, 200


class Net(nn.Module):
    """A transformer over tokens; positions count from the last, so that virtual tokens in front move no other."""

    @nn.compact
    def __call__(self, ids_BT, train: bool = False):
        x_BTD = nn.Embed(TOKENS, 48, name="embed")(ids_BT)
        positions = self.param("position", nn.initializers.normal(0.02), (PIXELS + MORE, 48))
        x_BTD = Encoder(layers=2, heads=4, hidden=96, name="encoder")(x_BTD + positions[-ids_BT.shape[1] :])
        return nn.Dense(5, name="head")(x_BTD.mean(axis=1))


NET = Net()
METHODS: dict[str, Transform | None] = {
    "head only": None,
    "bitfit": bitfit(),
    "ln-tuning": ln_tuning(),
    "trainable tokens": trainable_tokens(list(range(TOKENS))),
    "ia3": ia3(),
    "prompt, 8 tokens": prompt(MORE, ids="tokens"),
    "p-tuning, 8 tokens": prompt(MORE, hidden=48, ids="tokens"),
    "prefix, 8 tokens": prefix(MORE, ids="tokens"),
    "lora": lora(4),
    "rslora, rank 8": lora(8, alpha=4.0, stabilised=True),
    "pissa": pissa(4),
    "olora": olora(4),
    "loftq": loftq(4, group=16),
    "adalora, 8 to 4": adalora(STEPS, rank=8, target=4),
    "qlora": chain(quantize("nf4", group=16), lora(4)),
    "dora": dora(4),
    "vera": vera(rank=32),
    "loha": loha(2),
    "lokr": lokr(4),
    "fourierft": fourierft(frequencies=100, scale=30.0),
    "shira": shira(rank=2),
    "oft": oft(block=8),
    "boft": boft(block=8),
    "hra": hra(4),
    "houlsby": bottleneck(8),
    "pfeiffer": bottleneck(8, "pfeiffer"),
    "parallel": bottleneck(8, "parallel", scale=4.0),
    "full": full(),
    "full, from scratch": full(),
}


@dataclasses.dataclass(frozen=True)
class Config:
    workdir: str = "runs/peft_digits"
    """Folder of results.json and report.html."""
    methods: tuple[str, ...] = ()
    """Only these; all, if none is named."""
    shots: int = 40
    """Labels a class."""
    steps: int = STEPS
    """Of each run, 32 images each."""
    pretraining: int = 1500
    """Steps on digits 0-4, 64 images each."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    """Learning rates to choose from."""
    seeds: int = 5
    """Each has labels, an initialisation and an order of its own."""
    seed: int = 0
    """Of everything."""
    record: bool = False
    """Add the result to benchmarks/results."""

    def __post_init__(self):
        check_range(self, 1, math.inf, "shots", "steps", "pretraining")
        check_range(self, 2, math.inf, "seeds")
        check_range(self, 0, 2**31 - 1, "seed")


def main(config: Config) -> None:
    make_folder(config.workdir)
    console, since = Console(), time.perf_counter()
    low, high, test = data(config.seed)
    console.rule("pretraining on digits 0-4")
    base = pretrained(config, low, console)
    console.rule(f"digits 5-9 from {config.shots} labels a class: {len(config.rates)} rates x {config.seeds} seeds")
    rows = []
    for name in config.methods or METHODS:
        rows.append(row(config, name, base, high, test))
        found = rows[-1]
        console.print(
            f"{name:20} {found['trained']:>7,} trained  accuracy {found['accuracy']:.3f} "
            f"({found['low']:.3f} to {found['high']:.3f})  rate {found['rate']:g}  {found['seconds']:.0f} s",
            soft_wrap=True,
        )
    results = {"table": rows, "seconds": round(time.perf_counter() - since, 1)}
    atomic.write(Path(config.workdir) / "results.json", json.dumps(results, indent=1) + "\n")
    shown = ("method", "trained", "bytes", "accuracy", "low", "high", "rate")
    console.print(terminal_table([{name: found[name] for name in shown} for found in rows], "digits 5-9"))
    console.print(f"report: {report(config, rows)}")
    if config.record:
        record(RECORDS, results)
    dead = [found["method"] for found in rows if found["low"] <= CHANCE]
    if dead:
        console.print(f"[bold red]at chance:[/] {', '.join(dead)}")


def data(seed: int) -> tuple[dict, dict, dict]:
    """Digits 0-4, images; digits 5-9 to train on, and to test, as tokens."""
    digits = load_digits()
    upper = digits["label"] >= 5
    low, high = select(digits, np.flatnonzero(~upper)), select(digits, np.flatnonzero(upper))
    high = {"tokens": tokens_of(high["image"]), "label": high["label"] - 5}
    first, second = split_fraction(high["label"], 0.5, seed)
    return low, select(high, first), select(high, second)


def tokens_of(images: np.ndarray) -> np.ndarray:
    """[N, 8, 8, 1] in [0, 1] -> integers [N, 16]: the sum of 2x2 pixels, 0 to 4, times 2."""
    blocks = images[..., 0].reshape(-1, 4, 2, 4, 2).sum(axis=(2, 4))
    return np.rint(2 * blocks).astype(np.int32).reshape(-1, PIXELS)


def moved(low: dict) -> dict:
    """Every image in nine places, up to a pixel from its own."""
    padded = np.pad(low["image"], ((0, 0), (1, 1), (1, 1), (0, 0)))
    images = np.concatenate([padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)])
    return {"tokens": tokens_of(images), "label": np.tile(low["label"], 9)}


def fn(params: Any, batch: Any) -> Any:
    return NET.apply({"params": params}, batch["tokens"])


def pretrained(config: Config, low: dict, console: Console) -> Any:
    key = jax.random.key(config.seed)
    low = moved(low)
    params = NET.init(key, low["tokens"][:1])["params"]
    optimizer = Optimizer("adamw", 3e-3, schedule="cosine", steps=config.pretraining, warmup=50).build()
    split = full().init(key, params, {})
    base, state = init_state(split, optimizer, key)
    step = make_step(classify(NET, inputs="tokens"), full(), optimizer)
    metrics = {}
    for batch in seed_batches(low, [np.arange(len(low["label"]))], 64, config.pretraining, config.seed):
        state, metrics = step(base, state, jax.tree.map(lambda leaf: leaf[0], batch))
    right = float(metrics["accuracy"][0] / metrics["accuracy"][1])
    console.print(f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters; last batch {right:.3f} right")
    return full().apply(state.split._replace(params=base))


def row(config: Config, name: str, base: Any, high: dict, test: dict) -> dict[str, Any]:
    """What a technique reaches at the best of the learning rates, and what it costs."""
    since = time.perf_counter()
    technique, head = METHODS[name], full(where=HEAD)
    transform = head if technique is None else technique if name.startswith("full") else chain(head, technique)
    scratch = name == "full, from scratch"

    def params_of(key):
        fresh = lambda: NET.init(key, high["tokens"][:1])["params"]  # noqa: E731
        return fresh() if scratch else replace_head(base, key, 5, init=nn.initializers.zeros)

    def build(numbers):
        return transform, Optimizer("adam", numbers["rate"], clip=1.0).build()

    keys = jax.random.split(jax.random.key(config.seed + 1), config.seeds)
    runs = grid(rate=config.rates, seed=jnp.arange(config.seeds))
    own = {"rate": runs["rate"]}
    uses = usage(fn, base, {"tokens": high["tokens"][:1]})
    shots = [k_shot(high["label"], config.shots, config.seed + i) for i in range(config.seeds)]
    drawn = [shots[i] for i in runs["seed"].tolist()]
    start = init_sweep(build, own, keys[runs["seed"]], params_of, uses)
    shared = start[0]
    objective = classify(NET, inputs="tokens")
    cost = costs(objective, transform, build, shared, start[1], high)
    batches = seed_batches(high, drawn, 32, config.steps, config.seed)
    states, _ = fit_sweep(objective, build, own, start, batches)
    guesses = {
        part: predicted(transform, shared, states.split, arrays) for part, arrays in (("high", high), ("test", test))
    }
    held_out = [np.setdiff1d(np.arange(len(high["label"])), rows) for rows in drawn]
    chosen_by = [(guesses["high"][i] == high["label"])[rows].mean() for i, rows in enumerate(held_out)]
    best = int(np.reshape(chosen_by, (len(config.rates), -1)).mean(axis=1).argmax())
    right = (guesses["test"] == test["label"]).mean(axis=1).reshape(len(config.rates), -1)[best]
    accuracy = t_interval(right)
    return {
        "method": name, **cost, "rate": config.rates[best], "accuracy": accuracy.value, "low": accuracy.low,
        "high": accuracy.high, "seconds": round(time.perf_counter() - since, 1),
    }  # fmt: skip


def costs(objective, transform, build, base, states, high) -> dict[str, Any]:
    """Of one run: numbers trained besides the head, bytes of an adapter, FLOPs and temporary bytes of a step."""
    one = jax.tree.map(lambda leaf: leaf[0], states)
    optimizer = build({"rate": jnp.float32(1e-3)})[1]
    batch = {name: array[:32] for name, array in high.items()}
    step = step_fn(objective, transform, optimizer)
    memory: Any = jax.jit(step).lower(base, one, batch).compile().memory_analysis()
    is_head = lambda path: "head" in jax.tree_util.keystr(path)  # noqa: E731
    kept = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path((one.split.train, one.split.state))
        if not is_head(path)
    ]
    trained = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(one.split.train) if not is_head(path)]
    return {
        "trained": sum(leaf.size for leaf in trained),
        "bytes": nbytes(kept),
        "step FLOPs": flops(step, base, one, batch),
        "step memory": memory.temp_size_in_bytes,
    }


def predicted(transform: Transform, base: Any, splits: Any, arrays: dict) -> np.ndarray:
    """The classes that each run says, [runs, N]."""

    def one(split, tokens):
        whole = split._replace(params=base)
        return lift(transform.wrap(whole, fn))(transform.apply(whole), {"tokens": tokens}).argmax(-1)

    return np.asarray(jax.jit(jax.vmap(one, in_axes=(0, None)))(splits, arrays["tokens"]))


def report(config: Config, rows: list[dict]) -> Path:
    page = Report("Ways to tune, side by side")
    page.text(
        f"Digits 5-9 from {config.shots} labels a class, after digits 0-4; {config.seeds} seeds, mean and 95% interval."
        " Parameters and bytes are those besides the head."
    )
    page.table(rows, "Test accuracy and cost")
    points = [{"name": found["method"], "bytes": found["bytes"], "accuracy": found["accuracy"]} for found in rows]
    sizes = plots.accuracy_against_bytes([point for point in points if point["bytes"]])
    sizes.set_size_inches(9, 6)
    sizes.axes[0].set_xlabel("bytes of what is trained and kept beside it")
    sizes.savefig(Path(config.workdir) / "accuracy.png", dpi=110)
    page.figure(sizes, "Accuracy against bytes")
    return page.save(Path(config.workdir) / "report.html")
