"""Published models from their files: `load`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UsageError
from jaxbig.hub.build import Built, Opened, build, folder_of, nested, opened
from jaxbig.hub.fill import leaf_of
from jaxbig.hub.gguf import is_gguf
from jaxbig.hub.gguf_model import Reading, read_gguf
from jaxbig.hub.model import Model
from jaxbig.hub.plan import Plan
from jaxbig.hub.resolve import resolve
from jaxbig.mesh import Rules, shardings
from jaxbig.models.families import family_of
from jaxbig.models.family import Family
from jaxbig.tree import paths


def load(
    path: str | Path, task: str | None = None, *, dtype: Any = None, scan_layers: bool = False,
    num_classes: int | None = None, mesh: Any = None, rules: Rules = (), rng: Any = None, family: Family | None = None,
    online: bool = False, allow_nonfinite: bool = False, compute_dtype: Any = None, **options: Any,
) -> Model:  # fmt: skip
    """A published model, from a folder with its ``config.json`` and safetensors files, or from a GGUF file.

    Each leaf is read from its file to where it stays, turned and cast on the way: the host holds the model once, and
    with other devices only the leaf that is being read.

    What a GGUF file has as codes stays codes: its matrices are `Quantized`, for `jaxbig.lift`, with the file's own
    numbers. With `dtype` they are arrays.

    Args:
        path: the folder, or a GGUF file. With `online`, also a name on the Hugging Face hub ("org/name").
        task: of the head, such as "causal_lm" or "sequence_classification"; "features" for none. None: what the config
            names. Leaves of a head that the files do not have are drawn at random where `task` or `num_classes` asks
            for that head (fine-tuning from a base), else they are an error.
        dtype: of the parameters. None: each as in its file, codes as codes (64-bit floats become 32-bit ones unless JAX
            has them on).
        scan_layers: one stack of all layers in place of a leaf for each.
        num_classes: of the head. None: as the config says. A head of another number in the files is not read.
        mesh: devices to lay the parameters on.
        rules: ``(where, spec)`` for them, see `jaxbig.mesh.shardings`; without one a leaf is replicated.
        rng: key for a new head; None: ``jax.random.key(0)``.
        family: the model's. None: found by the config's ``model_type``.
        online: whether a name that is no folder may be downloaded, with the package huggingface_hub.
        allow_nonfinite: whether weights may be NaN or infinite.
        compute_dtype: of the module's arithmetic. None: its parameters'.
        **options: of the family's module, such as ``remat=True``.

    Returns:
        the model; its `fresh` and `unused` tell what was drawn and what was left.

    Raises:
        UsageError: the path is not there; the family has no such task or option.
        UserError: a file is missing or damaged; the config describes no model that jaxbig has; a tensor is missing, has
            another shape, or is not finite.

    Example:
        >>> load("nowhere/gpt2")
        Traceback (most recent call last):
            ...
        jaxbig.errors.UsageError: nowhere/gpt2: no such folder; give one, or pass online=True to download it from the
        Hugging Face hub
    """
    dtype = _known(dtype)
    options = {"scan_layers": scan_layers, "dtype": compute_dtype, **options}
    if is_gguf(path):
        if num_classes is not None or family is not None:
            raise UsageError(f"{path}: a GGUF file says its family itself and has no classes; leave both out")
        return read_gguf(path, task, options, Reading(dtype, mesh, rules, not allow_nonfinite))
    at = opened(folder_of(path, online), family)
    built = build(at, task, num_classes, options)
    plan = resolve(at, built, dtype, task is not None or num_classes is not None, num_classes is not None)
    places = {} if mesh is None else paths(shardings(nested(built.shapes), rules, mesh))
    leaves = {path: leaf_of(source, places.get(path), not allow_nonfinite) for path, source in plan.sources.items()}
    if plan.fresh:
        leaves |= _drawn(built, plan, jax.random.key(0) if rng is None else rng, places)
    params = nested({path: leaves[path] for path in built.shapes})
    rest = tuple(plan.fresh), tuple(plan.unused)
    return Model(built.module, params, built.config, built.task, at.family, built.leaves, at.folder, *rest)


def _known(dtype: Any) -> Any:
    if dtype is None:
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        raise UsageError(f"dtype={dtype!r} is no dtype; use bfloat16, float16, float32 or float64") from None
    if not jnp.issubdtype(found, jnp.floating):
        raise UsageError(f"dtype={dtype!r}: parameters are floats; jaxbig.quantize makes codes of them")
    if jax.dtypes.canonicalize_dtype(found) != found:
        raise UsageError(f"dtype={dtype!r}: JAX has 64 bits off; jax.config.update('jax_enable_x64', True) first")
    return found


def _zeros(built: Built) -> list[Any]:
    return [jnp.zeros(leaf.shape, leaf.dtype) for leaf in built.inputs]


def _drawn(built: Built, plan: Plan, rng: Any, places: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a new head, in the dtype of the others; no other leaf is computed."""
    dtypes = [source.dtype for source in plan.sources.values()]
    dtype = max(set(dtypes), key=dtypes.count)

    def draw(rng):
        found = paths(built.module.init(rng, *_zeros(built))["params"])
        return {path: found[path].astype(dtype) for path in plan.fresh}

    return jax.jit(draw, out_shardings={path: places.get(path) for path in plan.fresh})(rng)


def create(
    config: Mapping[str, Any], task: str | None = None, *, rng: Any = None, num_classes: int | None = None,
    family: Family | None = None, **options: Any,
) -> Model:  # fmt: skip
    """A model of a published kind with parameters drawn at random, for training from nothing.

    Args:
        config: what a ``config.json`` says.
        task, num_classes, family, **options: as of `load`.
        rng: key of the parameters; None: ``jax.random.key(0)``.

    Returns:
        the model, with parameters in float32.

    Raises:
        UsageError, UserError: as `load`.

    Example:
        >>> sizes = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "intermediate_size": 12, **sizes}
        >>> model = create(config)
        >>> model.apply(model.params, jnp.array([[1, 2, 3]])).shape, model.names("head/kernel")
        ((1, 3, 11), 'lm_head.weight')
    """
    at = Opened(Path(), dict(config), family_of(config) if family is None else family, {})
    built = build(at, task, num_classes, options)
    draw = jax.jit(lambda rng: built.module.init(rng, *_zeros(built))["params"])
    params = draw(jax.random.key(0) if rng is None else rng)
    return Model(built.module, params, built.config, built.task, at.family, built.leaves, fresh=tuple(built.shapes))
