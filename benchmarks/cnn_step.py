"""Training steps of the classic MNIST CNN on a CPU: the whole batch at once, or gradients accumulated over parts of it.

    python benchmarks/cnn_step.py [--batches 32 128 512] [--rounds 20]

The ways are run in turns, so that what else the machine does falls on all alike: trust the ratios of the medians. CPU
time is that of all threads together. With glibc, ``MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184``
in the environment keeps the program's buffers between steps, which otherwise are page faults in every one.
"""

import argparse
import functools
import os
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jaxbig.models import CNN  # noqa: E402

OPTIMISER = optax.adam(1e-3)


def loss(model, params, x, labels):
    logits = model.apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def whole(gradient, params, x, labels, part):
    return gradient(params, x, labels)


def unrolled(gradient, params, x, labels, part):
    """Parts one after the other in a program of their number; the barrier keeps XLA from doing them at once."""
    total = None
    for start in range(0, len(x), part):
        one = gradient(params, x[start : start + part], labels[start : start + part])
        total = one if total is None else jax.tree.map(jnp.add, total, one)
        params, total = jax.lax.optimization_barrier((params, total))
    return jax.tree.map(lambda leaf: leaf * part / len(x), total)


def scanned(gradient, params, x, labels, part):
    """Parts in a loop."""
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, part, *leaf.shape[1:]), (x, labels))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, params, x, labels))
    total, _ = jax.lax.scan(lambda sum_, one: (jax.tree.map(jnp.add, sum_, gradient(params, *one)), None), zero, parts)
    return jax.tree.map(lambda leaf: leaf * part / len(x), total)


WAYS = {
    "whole": (CNN(), whole),
    "whole, patches": (CNN(patches=True), whole),
    "unrolled": (CNN(), unrolled),
    "scanned, patches": (CNN(patches=True), scanned),
}


def stepper(way: str, part: int):
    model, accumulate = WAYS[way]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x, labels):
        value, grads = accumulate(jax.value_and_grad(functools.partial(loss, model)), params, x, labels, part)
        updates, state = OPTIMISER.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--part", type=int, default=32)
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {os.cpu_count()} cores, parts of {options.part}")
    random = np.random.default_rng(0)
    for batch in options.batches:
        x = jnp.asarray(random.random((batch, 28, 28, 1)), jnp.float32)
        labels = jnp.asarray(random.integers(0, 10, batch))
        steps, carries = {}, {}
        for way in WAYS:
            params = jax.jit(CNN().init)(jax.random.key(0), x[:1])["params"]
            steps[way] = stepper(way, options.part).lower(params, OPTIMISER.init(params), x, labels).compile()
            *carries[way], value = steps[way](params, OPTIMISER.init(params), x, labels)
            assert np.isclose(value, loss(CNN(), jax.jit(CNN().init)(jax.random.key(0), x[:1])["params"], x, labels))
        wall, cpu, repeat = {way: [] for way in WAYS}, {way: [] for way in WAYS}, max(1, 128 // batch)
        for _ in range(options.rounds):
            for way in WAYS:
                start, used = time.perf_counter(), time.process_time()
                for _ in range(repeat):
                    *carries[way], value = steps[way](*carries[way], x, labels)
                jax.block_until_ready(carries[way])
                wall[way].append((time.perf_counter() - start) / repeat / batch)
                cpu[way].append((time.process_time() - used) / repeat / batch)
        first = statistics.median(wall["whole"])
        for way in WAYS:
            median = statistics.median(wall[way])
            print(
                f"batch {batch:4}  {way:18} median {1 / median:6.0f} images/s ({first / median:.2f} of whole), "
                f"best {1 / min(wall[way]):6.0f}, CPU {statistics.median(cpu[way]) * 1e6:4.0f} us an image"
            )


if __name__ == "__main__":
    main()
