"""`inject_hyperparams`: a technique's numbers as arrays of its state."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from jaxbig.errors import UsageError
from jaxbig.transform import Split, Transform


def inject_hyperparams(factory: Callable[..., Transform]) -> Callable[..., Transform]:
    """Moves a factory's numbers into `state`: changing one recompiles nothing, and a sweep is a `vmap`.

    Args:
        factory: a factory of transforms, such as `lora`. Of a chain or a partition, inject into each link:
            ``chain(quantize("nf4"), inject_hyperparams(lora)(rank=4))`` has the numbers of LoRA in
            ``split.state["lora"]["hyperparams"]``.

    Returns:
        a factory with the same arguments. Those that are floats (or floating arrays) become entries of
        ``split.state["hyperparams"]``; integers, strings and booleans, which shape the tree, stay as they are. A number
        that only `init` reads (prune's sparsity) is recorded there too, but changing it later changes nothing.

    Raises:
        UsageError: an argument is itself a transform.

    Example:
        >>> import jax
        >>> from jaxbig.tune.lora import lora
        >>> transform = inject_hyperparams(lora)(rank=4, alpha=8.0)
        >>> split = jax.eval_shape(lambda: transform.init(jax.random.key(0), {}, {}))
        >>> sorted(split.state["hyperparams"])
        ['alpha', 'dropout']
    """

    @functools.wraps(factory)
    def injected(*args, **kwargs):
        bound = inspect.signature(factory).bind(*args, **kwargs)
        bound.apply_defaults()
        if any(_has_transform(value) for value in bound.arguments.values()):
            raise UsageError(
                f"inject_hyperparams: {factory.__name__} takes transforms, not numbers; inject into each link, as in "
                "chain(quantize('nf4'), inject_hyperparams(lora)(rank=4))"
            )
        floats = {k for k, p in inspect.signature(factory).parameters.items() if "float" in str(p.annotation)}
        given = {k: float(v) if k in floats and type(v) is int else v for k, v in bound.arguments.items()}
        numbers = {k: v for k, v in given.items() if _is_number(v)}
        fixed = {k: v for k, v in bound.arguments.items() if k not in numbers}
        outside = factory(**fixed, **numbers)

        def inside(split: Split) -> tuple[Transform, Split]:
            return factory(**fixed, **split.state["hyperparams"]), split._replace(state=split.state["inner"])

        def init(key, params, uses):
            split = outside.init(key, params, uses)
            values = {k: jnp.asarray(v, jnp.result_type(float)) for k, v in numbers.items()}
            return split._replace(state={"hyperparams": values, "inner": split.state})

        def apply(split, key=None):
            transform, inner = inside(split)
            return transform.apply(inner, key)

        def update(split, grads, step):
            transform, inner = inside(split)
            inner = transform.update(inner, grads, step)
            return inner._replace(state={**split.state, "inner": inner.state})

        def wrap(split, fn):
            transform, inner = inside(split)
            return transform.wrap(inner, fn)

        def reset(split, step):
            transform, inner = inside(split)
            return transform.reset(inner, step)

        config = {"technique": "inject_hyperparams", "of": outside.config}
        return Transform(outside.name, init, apply, update, wrap, config, reset)

    return injected


def _has_transform(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_transform, value.values()))
    return isinstance(value, Transform) or (isinstance(value, tuple | list) and any(map(_has_transform, value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating))
