"""Law 6 onto other meshes: every technique's split, saved on one mesh, comes back on others to the bit.

The target to restore is what a new process has: shapes alone, from `eval_shape` of the init of the transform that the
manifest's constructor arguments rebuild, and the sharding rules of the new mesh.
"""

import functools
import sys
import tempfile
from pathlib import Path

import pytest
from devices import on_devices

TESTS = Path(__file__).resolve().parent


def rules(tree, axis, size):
    """Every leaf that can be split over a mesh axis is: along its last axis that the devices divide."""
    from jax.sharding import PartitionSpec as P

    from jaxbig.tree import paths
    from jaxbig.weight import is_moved, is_weight

    def fits(leaf, i):
        return leaf.shape[i] % size == 0 and not (is_weight(leaf) and leaf.blocks(i - leaf.ndim))

    found = []
    for path, leaf in paths(tree).items():
        if is_moved(leaf):
            continue
        axes = [i for i in range(len(leaf.shape)) if fits(leaf, i)]
        if axes:
            found.append((path.replace(".", r"\."), P(*[None] * axes[-1], axis)))
    return found


def program(which: str):
    """Techniques on eight devices; one line each."""
    import json

    import jax
    import numpy as np
    from jax.sharding import AxisType
    from law_models import case
    from law_trial import entry_of, stir, uses_of

    from jaxbig import checkpoint
    from jaxbig.mesh import shardings
    from jaxbig.registry import build
    from jaxbig.storage import to_stored

    model = case("unrolled")
    meshes = {
        shape: (jax.make_mesh(shape, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2), "tensor", shape[1])
        for shape in ((2, 4), (4, 2), (1, 8), (8, 1))
    }
    first, *others = meshes.values()

    def placing(tree, mesh, axis, size):
        return shardings(tree, rules(tree, axis, size), mesh)

    for alone in entries(which):
        _, transform = entry_of(alone)
        split = transform.init(jax.random.key(5), model.params, uses_of("unrolled"))
        split = split._replace(train=stir(split.train))
        placed = jax.device_put(split, placing(split, *first))
        spread = [leaf for leaf in jax.tree.leaves(placed) if not leaf.sharding.is_fully_replicated]
        assert spread
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(folder, 1, placed, {"transform": transform.config})
            again = build(json.loads(json.dumps(checkpoint.read_manifest(folder)["transform"])))
            shapes = jax.eval_shape(
                lambda again=again: again.init(jax.random.key(5), model.params, uses_of("unrolled"))
            )
            for other in others:
                wanted = placing(shapes, *other)
                target = jax.tree.map(
                    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                    shapes,
                    wanted,
                )
                restored = checkpoint.restore(folder, target)
                assert jax.tree.structure(restored) == jax.tree.structure(split)
                trees = (restored, split, wanted)
                for new, old, sharding in zip(*map(jax.tree.leaves, trees), strict=True):
                    assert new.sharding == sharding, (new.sharding, sharding)
                    assert new.dtype == old.dtype
                    assert np.asarray(to_stored(new)).tobytes() == np.asarray(to_stored(old)).tobytes()
        print(f"{alone[0]}-{alone[1]} is the same", flush=True)


@functools.cache
def process(which: str):
    return on_devices(8, __file__, which, timeout=3600)


def entries(which: str):
    from law_trial import ALONE

    fast = [("lora", 0), ("int4", 0)]
    return fast if which == "fast" else [alone for alone in ALONE if alone not in fast]


def name_of(alone) -> str:
    return f"{alone[0]}-{alone[1]}"


@pytest.mark.slow  # tests/test_checkpoint.py restores one onto another mesh
@pytest.mark.parametrize("alone", entries("fast"), ids=name_of)
def test_law_6_saved_on_one_mesh_and_restored_on_others(alone):
    done = process("fast")
    assert f"{name_of(alone)} is the same\n" in done.stdout, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("alone", entries("other"), ids=name_of)
def test_every_other_technique_too(alone):
    done = process("other")
    assert f"{name_of(alone)} is the same\n" in done.stdout, done.stderr[-3000:]


if __name__ == "__main__":
    program(sys.argv[1])
