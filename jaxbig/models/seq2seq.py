"""Decoders that attend to an encoder, called as decoders that do not: what they keep of its states goes in and out with
their cache.

Legend of the shape suffixes: B batch, S tokens of the encoder, T tokens of the decoder, H heads, K width of a head, L
layers, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxbig.models.cache import Cache, empty_cache


class Memory(NamedTuple):
    """What a decoder keeps of the encoder's states.

    Attributes:
        keys, values: of unrolled layers a tuple of L arrays [B, H, S, K], of scanned ones an array [L, B, H, S, K].
        segments: int [B, S] of the encoder's tokens, or None.
    """

    keys: Any
    values: Any
    segments: Any = None


class Remembered(NamedTuple):
    """What a decoder remembers.

    Attributes:
        memory: of the encoder, the same at every step.
        cache: of its own tokens.
    """

    memory: Memory
    cache: Cache


@dataclasses.dataclass(frozen=True)
class DecoderOf:
    """The decoder of an encoder-decoder, with the sizes that `empty_cache` asks for.

    Attributes:
        module: a linen module with ``encode``, ``memory`` and ``decode``, such as `T5`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxbig.models.t5 import T5
        >>> model = T5(vocabulary=11, width=8, layers=1, heads=2, head_width=3, hidden=12)
        >>> tokens, start = jnp.array([[5, 6, 7, 1]]), jnp.array([[0]])
        >>> variables = model.init(jax.random.key(0), tokens, start)
        >>> decoder = DecoderOf(model)
        >>> held = decoder.begin(variables, tokens, length=16)
        >>> logits, held = decoder.apply(variables, start, cache=held)
        >>> logits.shape, int(held.cache.index)
        ((1, 1, 11), 1)
    """

    module: Any

    @property
    def layers(self) -> int:
        return self.module.decoder_layers or self.module.layers

    @property
    def kv_heads(self) -> int:
        return self.module.heads

    @property
    def head_width(self) -> int:
        return self.module.head_width

    @property
    def scan_layers(self) -> bool:
        return self.module.scan_layers

    @property
    def dtype(self) -> Any:
        return self.module.dtype

    def begin(
        self, variables: Mapping[str, Any], tokens_BS: jax.Array, segments: Any = None, *, length: int,
        dtype: Any = None, int8: bool = False,
    ) -> Remembered:  # fmt: skip
        """Runs the encoder and computes what the decoder keeps of it: once a text.

        Args:
            variables: as `apply` of linen has them.
            tokens_BS: what the encoder reads.
            segments: int [B, S], 0 for padding.
            length, dtype, int8: of the decoder's cache, see `empty_cache`.

        Returns:
            the memory and an empty cache.
        """
        states_BSD = self.module.apply(variables, tokens_BS, segments, method="encode")
        memory = self.module.apply(variables, states_BSD, segments, method="memory")
        return Remembered(memory, empty_cache(self, len(tokens_BS), length, dtype, int8))

    def apply(
        self, variables: Mapping[str, Any], tokens_BT: jax.Array, positions: Any = None, segments: Any = None, *,
        cache: Remembered, logits_at: Any = None,
    ) -> tuple[jax.Array, Remembered]:  # fmt: skip
        """One step: logits [B, T, V], or [B, V] with `logits_at`, and what is remembered then."""
        logits, new = self.module.apply(
            variables, tokens_BT, cache.memory, positions, segments, cache.cache, logits_at, method="decode"
        )
        return logits, cache._replace(cache=new)
