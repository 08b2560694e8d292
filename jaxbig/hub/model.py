"""A published model in one's hands: a pure function, a tree of parameters, and what is known of both."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from jaxbig.errors import UsageError
from jaxbig.hub.gguf import is_gguf, read_container
from jaxbig.hub.gguf_tokenizer import tokenizer_of
from jaxbig.hub.plan import Named, Names, names_by
from jaxbig.hub.tokenizer import Tokenizer, read_tokenizer
from jaxbig.models.family import Family
from jaxbig.tree import PyTree
from jaxbig.usage import Uses, usage


@dataclasses.dataclass(frozen=True)
class Model:
    """What `jaxbig.load` gives.

    Attributes:
        module: the linen module.
        params: its parameters.
        config: ``config.json`` as it is for this task and head.
        task: what the head is for.
        family: of the module; it says which tensor each leaf is.
        leaves: path -> its tensors' names in the files.
        path: the folder it came from, whose tokenizer and other files belong to it (`jaxbig.save` takes them along), or
            the GGUF file; None: none.
        fresh: paths of leaves that no file had, a new head's; drawn at random.
        unused: tensors of the files that no leaf is, such as another task's head.

    `dataclasses.replace` gives the same model with other parameters.
    """

    module: nn.Module
    params: PyTree
    config: dict[str, Any]
    task: str
    family: Family
    leaves: dict[str, Named]
    path: Path | None = None
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @cached_property
    def apply(self) -> Callable[..., Any]:
        """``apply(params, tokens, **more)``, the module as a pure function: what `jaxbig.lift` and objectives take."""
        module = self.module

        def apply(params: PyTree, *inputs: Any, **more: Any) -> Any:
            return module.apply({"params": params}, *inputs, **more)

        return apply

    @cached_property
    def uses(self) -> Uses:
        """How the model uses each leaf, see `jaxbig.usage`; traced when first asked for, nothing is computed."""
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.params)
        return usage(self.apply, shapes, *self.family.example(self.module))

    @property
    def names(self) -> Names:
        """Path -> tensor, or one for each layer: what `jaxbig.hub.peft_read.read_peft` takes."""
        return names_by(self.leaves)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the model's folder or GGUF file, read when first asked for.

        Raises:
            UsageError: the model came from no folder.
            UserError: see `jaxbig.hub.tokenizer.read_tokenizer` and `jaxbig.hub.gguf_tokenizer.tokenizer_of`.
        """
        if self.path is None:
            raise UsageError(
                "this model came from no folder; jaxbig.hub.tokenizer.read_tokenizer reads one's tokenizer"
            )
        return tokenizer_of(read_container(self.path)) if is_gguf(self.path) else read_tokenizer(self.path)
