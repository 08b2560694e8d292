"""What a run was at its best, read back from the checkpoint that `Run.keep_best` kept."""

from pathlib import Path
from typing import Any

from jaxbig import checkpoint
from jaxbig.errors import UserError
from jaxbig.job import Fitted, Run, Task
from jaxbig.resume import from_parts, parts


def at_best(task: Task, fitted: Fitted, run: Run) -> Fitted:
    """A finished run with the split, ``vars`` and state of its best checkpoint.

    Args:
        task, run: what the run was given; ``run.keep_best`` says what is best, and of equal checkpoints the oldest is.
        fitted: what it ended with.

    Returns:
        `fitted` with those; its history is the whole run's.

    Raises:
        UserError: the run kept no best checkpoint, or it is damaged.

    Example:
        >>> import tempfile, flax.linen as nn, jax, jax.numpy as jnp, numpy as np, optax
        >>> from jaxbig.data import Loader
        >>> from jaxbig.objective import classify
        >>> from jaxbig.train import fit
        >>> from jaxbig.tune.full import full
        >>> eye = {"image": np.eye(4, dtype=np.float32), "label": np.arange(4)}
        >>> split = full().init(jax.random.key(0), {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)}, {})
        >>> held_out = classify(nn.Dense(4), train=False), Loader(eye, 4, remainder="pad")
        >>> task = Task(classify(nn.Dense(4)), full(), optax.sgd(1.0), Loader(eye, 2), held_out)
        >>> run = Run(3, tempfile.mkdtemp(), quiet=True, keep_last=1, keep_best="max:val_accuracy")
        >>> fitted = fit(task, split, jax.random.key(0), run)
        >>> [line["val_accuracy"] for line in fitted.history], int(at_best(task, fitted, run).state.step)
        ([1.0, 1.0, 1.0], 2)
    """
    if run.workdir is None or run.keep_best is None:
        raise UserError("at_best: this run keeps no best checkpoint; give it a workdir, and keep_best='max:...'")
    folder = Path(run.workdir) / "checkpoints"
    step = checkpoint.best(folder, run.keep_best)
    state = from_parts(checkpoint.restore(folder, parts(fitted.state), step), fitted.state)
    shown = task.view(state)
    return fitted._replace(split=shown.split._replace(params=fitted.split.params), vars=shown.vars, state=state)


def variables(task: Task, fitted: Fitted) -> dict[str, Any]:
    """What ``module.apply`` takes: the parameters as the model reads them, and the other collections.

    Args:
        task: what the run was given.
        fitted: what it ended with.

    Returns:
        ``{"params": ..., "batch_stats": ...}`` and whatever else is in ``vars``; leaves may be Weights.
    """
    return {"params": task.transform.apply(fitted.split), **fitted.vars}
