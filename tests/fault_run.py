"""A small run that kills itself at a named point of its second save; `tests/test_faults.py` starts it.

python fault_run.py WORKDIR new|resume POINT
"""

import os
import signal
import sys
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from jaxbig import checkpoint, manifest, saver
from jaxbig.data import Loader
from jaxbig.objective import classify
from jaxbig.train import Run, Task, fit
from jaxbig.tune.full import full


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_manifest(incoming, whole):
    (incoming / manifest.MANIFEST).write_text('{"crc32": 1}\n{"format": 2, "st')
    die()


def half_removed(path):
    (path / manifest.MANIFEST).unlink(missing_ok=True)
    die()


def after(function):
    def act(*given, **options):
        function(*given, **options)
        die()

    return act


def in_the_thread(function):
    """Lets the thread begin, and kills while the main thread computes."""

    def act(self):
        function(self)
        threading.Timer(0.01, die).start()

    return act


# point -> (object, attribute, what takes its place from the second save on)
POINTS = {
    "before the copy": (checkpoint, "snapshot", die),
    "after the copy": (checkpoint, "snapshot", after(checkpoint.snapshot)),
    "before the thread": (saver.threading.Thread, "start", die),
    "while the thread writes": (saver.threading.Thread, "start", in_the_thread(threading.Thread.start)),
    "while the next save waits": (saver.Saver, "wait", die),
    "before the folder": (checkpoint, "_write", die),
    "before the arrays": (ocp.StandardCheckpointer, "save", die),
    "after some arrays": (ocp.StandardCheckpointer, "save", after(ocp.StandardCheckpointer.save)),
    "before the manifest": (manifest, "write", die),
    "half a manifest": (manifest, "write", half_a_manifest),
    "after the manifest": (manifest, "write", after(manifest.write)),
    "before the rename": (manifest, "move_in", die),
    "after the rename": (manifest, "move_in", after(manifest.move_in)),
    "before the old ones go": (manifest, "prune", die),
    "an old one half removed": (manifest, "remove", half_removed),
    "after all": (manifest, "prune", after(manifest.prune)),
}


def arm(point: str) -> None:
    """From the second save on, the point's function is the one that kills."""
    saves, real = [0], saver.Saver.save

    def save(self, *given, **options):
        saves[0] += 1
        if saves[0] == 2:
            self.wait()
            place, name, act = POINTS[point]
            setattr(place, name, act)
        return real(self, *given, **options)

    saver.Saver.save = save


def main(workdir: str, resume: bool, point: str) -> None:
    if point:
        arm(point)
    generator = np.random.default_rng(0)
    data = {"image": generator.normal(size=(24, 6)).astype(np.float32), "label": generator.integers(0, 3, 24)}
    model = nn.Dense(3)
    params = {"kernel": jnp.zeros((6, 3)), "bias": jnp.zeros(3)}
    task = Task(classify(model), full(), optax.adam(1e-2), Loader(data, 4))
    split = full().init(jax.random.key(0), params, {})
    fit(task, split, jax.random.key(0), Run(4, workdir, resume, save_every=3, keep_last=1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "resume", sys.argv[3] if len(sys.argv) > 3 else "")
