"""One layer's attention for one new token: in which layout the cache lies, and when it is written.

    python benchmarks/decode_layout.py [--rounds 20] [--no-record]

Four ways run in turns, so that what else the machine does falls on all alike; the cache is donated to each. The last is
what `jaxbig.models.cache` does. Shown are the median and the rate at which that reads the layer's keys and values once.
Appends one line to benchmarks/results/decode_layout.jsonl.

Shapes: B rows, S slots, G heads of keys, H heads of queries that share one, K width of a head.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jaxbig.models.attention import Where  # noqa: E402
from jaxbig.models.cache import Cache, Seen, append, attend  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "decode_layout.jsonl"
CASES = {  # B, S, G, H, K
    "GPT-2, 1 row": (1, 1024, 12, 1, 64),
    "GPT-2, 8 rows": (8, 1024, 12, 1, 64),
    "GPT-2, 1 row, short": (1, 256, 12, 1, 64),
    "Llama 3 8B, 1 row": (1, 2048, 8, 4, 128),
}


def written_first(slots: str):
    """Write the new token, then attend to all slots; `slots` is the layout, BSGK or BGSK."""
    axis = slots.index("S")

    def step(cache: Cache, new):
        q, k, v = new
        swap = (lambda x: x) if slots == "BSGK" else (lambda x: x.swapaxes(1, 2))
        write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, swap(new), cache.index, axis)  # noqa: E731
        keys, values = write(cache.keys, k), write(cache.values, v)
        scores = jnp.einsum(f"BTGHK,{slots}->BGHTS", q, keys)
        out = jnp.einsum(f"BGHTS,{slots}->BTGHK", jax.nn.softmax(scores), values)
        return out, cache._replace(keys=keys, values=values)

    return step


def beside(ordered: bool):
    """Attend to the old slots and the new token, then write; with or without telling XLA that no read comes later."""

    def step(cache: Cache, new):
        q, k, v = new
        shape, slots = q.shape, cache.keys.shape[2]
        seen = Seen(jnp.ones((1, 1, 1, 1), bool), jnp.ones((1, 1, 1, slots), bool))
        out = attend(q.reshape(shape[0], 1, -1, shape[-1]), (k, v), (cache.keys, cache.values), seen, scale=1.0)
        at = Where(cache.positions[:, :1], cache.segments[:, :1])
        after = out if ordered else jnp.zeros((1,))
        return out.reshape(shape), append(cache, k, v, at, after)._replace(index=cache.index)

    return step


WAYS = {
    "written first, BSGK": ("BSGK", written_first("BSGK")),
    "written first, BGSK": ("BGSK", written_first("BGSK")),
    "beside, BGSK, unordered": ("BGSK", beside(False)),
    "beside, BGSK": ("BGSK", beside(True)),
}


def medians(shape: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Milliseconds a step for each way."""
    rows, slots, groups, heads, width = shape
    random = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    new = normal(rows, 1, groups, heads, width), normal(rows, 1, groups, width), normal(rows, 1, groups, width)
    sizes = {"B": rows, "S": slots, "G": groups, "K": width}
    steps, caches, spent = {}, {}, {way: [] for way in WAYS}
    for way, (layout, step) in WAYS.items():
        keys, values = (normal(*(sizes[axis] for axis in layout)) for _ in range(2))
        positions, segments = (jnp.zeros((rows, slots), jnp.int32) for _ in range(2))
        steps[way] = jax.jit(step, donate_argnums=0)
        caches[way] = steps[way](Cache(keys, values, positions, segments, jnp.int32(5)), new)[1]
    repeat = max(1, 400_000_000 // (8 * rows * slots * groups * width) // 20)
    for _ in range(rounds):
        for way in WAYS:
            start = time.perf_counter()
            for _ in range(repeat):
                out, caches[way] = steps[way](caches[way], new)
            jax.block_until_ready((out, caches[way]))
            spent[way].append((time.perf_counter() - start) / repeat * 1e3)
    return {way: statistics.median(times) for way, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    table = {}
    for name, shape in CASES.items():
        rows, slots, groups, _, width = shape
        table[name] = {way: round(value, 3) for way, value in medians(shape, options.rounds).items()}
        for way, value in table[name].items():
            print(f"{name:20} {way:24} {value:8.3f} ms {8e-6 * rows * slots * groups * width / value:6.1f} GB/s")
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python benchmarks/decode_layout.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "median_ms": table,
    }
    if not options.no_record:
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
