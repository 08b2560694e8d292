"""LoRA+: other learning rates for the two factors of low-rank updates, as rules for the optimiser."""

import re
from typing import Any

from jaxbig.errors import UsageError
from jaxbig.tree import PyTree, Where, paths
from jaxbig.usage import Uses

Rule = tuple[Where, Any]
FAST = ("b", "magnitude")  # of what has a factor a too


def lora_plus(train: PyTree, uses: Uses, ratio: Any = 16.0, table: Any = 1.0) -> list[Rule]:
    """Learning-rate rules: B's rate is `ratio` times A's.

    A sums over the width of a layer and B over the rank, so in a wide model one rate for both is too small for B.

    Args:
        train: ``split.train`` of any technique, chain or partition; what has factors ``a`` and ``b`` is meant.
        uses: of the model, see `jaxbig.usage.usage`.
        ratio: B's rate over A's; DoRA's lengths and trained vectors (biases, scales) get B's. May be traced.
        table: of both factors of what is looked up, over A's rate elsewhere. There it is A that starts at zero, and it
            sums over nothing: each row is taken by itself, so the reason for a larger rate of B is gone.

    Returns:
        rules for `Optimizer(lr_rules=...)`, whose `lr` is A's.

    Raises:
        UsageError: nothing in `train` has two factors.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxbig.tune.lora import lora
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
        >>> uses = usage(lambda p, x: jnp.tanh(x @ p["w"]), params, x)
        >>> lora_plus(lora(2, where="w").init(jax.random.key(0), params, uses).train, uses)
        [(('w/b',), 16.0)]

    Reference: Hayou et al. 2024, arXiv:2402.12354. Deviations, PEFT's too: vectors get B's rate. PEFT's rate of tables
    is 1e-6 whatever the others are: ``table=1e-6 / lr`` is that. PEFT does not let biases decay: a rule of the
    optimiser's own, ``decay_rules``, says that.
    """
    leaves = paths(train)
    pairs = {path[:-1] for path in leaves if path.endswith("/a") and f"{path[:-1]}b" in leaves}
    if not pairs:
        raise UsageError(
            "lora_plus: nothing that is trained has factors a and b; give the split.train of lora or alike"
        )
    fast, tables = [], []
    for path, leaf in leaves.items():
        owner = max((name for name in uses if f"/{name}/" in f"/{path}/"), key=len, default=None)
        its = uses.get(owner, ()) if owner is not None else ()
        stem, _, part = path.rpartition("/")
        factor = f"{stem}/" in pairs
        if factor and any(use.kind == "lookup" for use in its):
            tables.append(re.escape(path))
        elif part in FAST if factor else leaf.ndim - max((use.layers for use in its), default=0) <= 1:
            fast.append(re.escape(path))
    return [(tuple(names), value) for names, value in ((fast, ratio), (tables, table)) if names]
