"""Training speed of the classic MNIST network: our trainer's loop against Keras's, on TensorFlow, the same net.

    python benchmarks/keras_mnist.py --keras-python PYTHON [--batches 32 128 512] [--rounds 7] [--steps 200]

PYTHON is the interpreter of an environment with tensorflow-cpu, which must not be ours:
``python3 -m venv keras && keras/bin/pip install tensorflow-cpu``. Each program trains in a process of its own, on
images in memory, with Adam, loss and accuracy, a shuffled epoch of `steps` steps a round; rounds alternate, so that
what else the machine does falls on both. Keras runs as it does by default and with ``jit_compile=False``; the quicker
one counts. Appends one line with medians, of rates and of the rounds' ratios, and their 95% intervals (by order, which
asks nothing of how they are distributed) to benchmarks/results/keras_mnist.jsonl.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PART = 32
WAYS = ["keras", "keras, not compiled"]


def images(count: int):
    random = np.random.default_rng(0)
    return random.random((count, 28, 28, 1), np.float32), random.integers(0, 10, count).astype(np.int32)


def wait_for_go(*told: object) -> None:
    print("told", *told, flush=True)
    if sys.stdin.readline().strip() != "go":
        sys.exit(0)


def ours(batch: int, steps: int, rounds: int) -> None:
    sys.path.insert(0, str(ROOT))
    import jax
    import jax.numpy as jnp

    from jaxbig import full
    from jaxbig.data import Loader
    from jaxbig.gradient import Accumulate
    from jaxbig.models import CNN
    from jaxbig.objective import classify
    from jaxbig.optim import Optimizer
    from jaxbig.train import Run, Task, fit

    x, y = images(steps * batch)
    model = CNN(patches=True)
    split = full().init(jax.random.key(0), jax.jit(model.init)(jax.random.key(0), jnp.asarray(x[:1]))["params"], {})
    ways = (Accumulate(batch // PART),) if batch > PART else ()
    task = Task(
        classify(model), full(), Optimizer("adam", 1e-3).build(), Loader({"image": x, "label": y}, batch), ways=ways
    )
    # The first round compiles; a line's seconds are those of its steps, without the time in callbacks.
    told = lambda moment: wait_for_go(moment.line["examples_per_second"], moment.line["data_wait"])  # noqa: E731
    fit(task, split, jax.random.key(0), Run(rounds + 1, quiet=True, callbacks=(told,)))


def keras(batch: int, steps: int, rounds: int, jit: bool) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras  # pyright: ignore

    layers, (x, y) = keras.layers, images(steps * batch)
    model = keras.Sequential([
        keras.Input((28, 28, 1)), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
        layers.Dense(128, activation="relu"), layers.Dense(10),
    ])  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], jit_compile="auto" if jit else False)

    class Rounds(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.since = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            wait_for_go(steps * batch / (time.perf_counter() - self.since), 0)

    model.fit(x, y, batch_size=batch, epochs=rounds + 1, verbose=0, callbacks=[Rounds()])


class Worker:
    """A process that trains one round when it is told to."""

    def __init__(self, python: str, name: str, batch: int, options: argparse.Namespace):
        words = [python, __file__, "--worker", name, "--batches", str(batch)]
        words += ["--steps", str(options.steps), "--rounds", str(options.rounds)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)
        self.told()

    def told(self) -> list[float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("told "):
                return [float(word) for word in line.split()[1:]]
        raise SystemExit("a worker ended; see above")

    def round(self) -> list[float]:
        self.say("go")
        return self.told()

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()


def median(values) -> dict[str, float]:
    """With the 95% interval between two of the values themselves."""
    from scipy import stats

    interval = stats.quantile_test(values).confidence_interval(0.95)
    named = {"median": statistics.median(values), "low": interval.low, "high": interval.high}
    return {name: round(float(value), 4) for name, value in named.items()}


def measure(batch: int, options: argparse.Namespace) -> dict:
    names = {"ours": sys.executable, **{name: str(options.keras_python) for name in options.keras}}
    workers = {name: Worker(python, name, batch, options) for name, python in names.items()}
    rates, waits = {name: [] for name in names}, []
    for _ in range(options.rounds):
        for name, worker in workers.items():
            rate, wait = worker.round()
            rates[name].append(rate)
            waits += [wait] if name == "ours" else []
    for worker in workers.values():
        worker.say("stop")
        worker.process.wait()
    best = max(options.keras, key=lambda name: statistics.median(rates[name]))
    ratios = np.array(rates["ours"]) / np.array(rates[best])
    found = {"batch": batch, "against": best, "ratio": median(ratios), "data_wait": max(waits)}
    found |= {name: median(values) for name, values in rates.items()}
    for name in names:
        value, low, high = found[name].values()
        print(f"batch {batch:4}  {name:20} {value:6,.0f} images/s ({low:,.0f} to {high:,.0f})")
    value, low, high = found["ratio"].values()
    told = f"{value:.3f} ({low:.3f} to {high:.3f}); waits for data {100 * max(waits):.2f}%"
    print(f"batch {batch:4}  ours / {best}: {told}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keras-python", default="python3")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--rounds", type=int, default=7, help="at least 6: fewer bound no median at 95%%")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--keras", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        given = (options.batches[0], options.steps, options.rounds)
        ours(*given) if options.worker == "ours" else keras(*given, options.worker == "keras")
        return
    sys.path.insert(0, str(ROOT))
    from jaxbig.record import record

    if options.rounds < 6:
        parser.error(f"--rounds {options.rounds}: use at least 6")
    ask = "import keras, tensorflow; print(keras.__version__, tensorflow.__version__)"
    told = subprocess.run([options.keras_python, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    sizes = " ".join(map(str, options.batches))
    found = {"command": f"python benchmarks/keras_mnist.py --keras-python PYTHON --batches {sizes}"}
    found |= {"keras": told[-2], "tensorflow": told[-1], "rounds": options.rounds, "steps": options.steps}
    found |= {"table": [measure(batch, options) for batch in options.batches]}
    if not options.no_record:
        record(ROOT / "benchmarks" / "results" / "keras_mnist.jsonl", found)


if __name__ == "__main__":
    main()
