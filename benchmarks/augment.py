"""How fast the augmentations are, on one core.

    python benchmarks/augment.py [--rounds 50] [--no-record]

Batches of 128, of MNIST's and CIFAR's shapes, uint8 and float32, of one second of sound at 16 kHz, of spectrograms and
of token ids. Each augmentation runs in turns with all others, so that none finds its memory warm; shown and recorded
are the median over the rounds and the best. Beside `Affine` stand its floor, the four gathers alone that any bilinear
resampling in NumPy has to do, and the same by scipy.ndimage. Appends one line to benchmarks/results/augment.jsonl.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jaxbig.data import Draw, compose  # noqa: E402
from jaxbig.data.augment_affine import Affine  # noqa: E402
from jaxbig.data.augment_audio import Noise, Shift, SpecAugment  # noqa: E402
from jaxbig.data.augment_image import Crop, Cutout, Flip, Jitter  # noqa: E402
from jaxbig.data.augment_mix import CutMix, Mixup  # noqa: E402
from jaxbig.data.augment_text import TokenDropout  # noqa: E402

B = 128


def cases() -> dict:
    """Name -> function without arguments that augments one batch."""
    rng, draw, found = np.random.default_rng(0), Draw(0, 0, np.arange(B)), {}

    def add(name, act, **batch):
        found[name] = lambda: act(batch, draw)

    for shape in ((28, 28, 1), (32, 32, 3)):
        for dtype in ("float32", "uint8"):
            image = (rng.random((B, *shape)) * (255 if dtype == "uint8" else 1)).astype(dtype)
            size, label = "x".join(map(str, shape)) + " " + dtype, rng.integers(0, 10, B)
            for mode in ("nearest", "constant", "reflect"):
                add(f"Affine {mode} {size}", Affine(20, 0.1, 0.2, 0.2, mode), image=image)
            add(f"Flip {size}", Flip(), image=image)
            add(f"Crop {size}", Crop(4), image=image)
            add(f"Cutout {size}", Cutout(8), image=image)
            add(f"Jitter {size}", Jitter(0.4, 0.4), image=image)
            add(f"Mixup {size}", Mixup(10), image=image, label=label)
            add(f"CutMix {size}", CutMix(10), image=image, label=label)
            add(f"Affine, Flip, Cutout {size}", compose(Affine(20, 0.1, 0.2, 0.2), Flip(), Cutout(8)), image=image)
        flat = rng.random(B * shape[0] * shape[1]).astype(np.float32)
        index = np.arange(len(flat)).reshape(B, -1)
        gathers = 4 * shape[2]
        found[f"floor: {gathers} gathers {shape}"] = lambda flat=flat, index=index, n=gathers: [
            flat.take(index, mode="clip") for _ in range(n)
        ]
        matrices, offsets = Affine(20, 0.1, 0.2, 0.2).matrices(draw, *shape[:2])
        found[f"scipy.ndimage {shape}"] = lambda image=image, m=matrices, o=offsets, c=shape[2]: [
            ndimage.affine_transform(image[b, ..., i], m[b], o[b], order=1) for b in range(B) for i in range(c)
        ]
    audio = rng.normal(size=(B, 16_000)).astype(np.float32)
    add("Shift 16000", Shift(), audio=audio)
    add("Noise 16000", Noise(), audio=audio)
    add("SpecAugment 1000x80", SpecAugment(), audio=rng.normal(size=(B, 1000, 80)).astype(np.float32))
    add("TokenDropout 512", TokenDropout(0.1, 3, (0, 1, 2)), ids=rng.integers(0, 30_000, (B, 512)))
    return found


def measure(acts: dict, rounds: int) -> dict:
    """Name -> examples a second, (median, best)."""
    seconds = {name: [] for name in acts}
    for act in acts.values():
        act()
    for _ in range(rounds):
        for name, act in acts.items():
            since = time.perf_counter()
            act()
            seconds[name].append(time.perf_counter() - since)
    return {name: (round(B / statistics.median(each)), round(B / min(each))) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rates = measure(cases(), arguments.rounds)
    print(f"{'augmentation':45} {'examples/s, median':>20} {'best':>10}")
    for name, (median, best) in rates.items():
        print(f"{name:45} {median:20,} {best:10,}")
    if not arguments.no_record:
        record = {
            "command": f"python benchmarks/augment.py --rounds {arguments.rounds}",
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, 1 core",
            "load": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "examples_per_second": {name: {"median": median, "best": best} for name, (median, best) in rates.items()},
        }
        with (ROOT / "benchmarks" / "results" / "augment.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
