"""The cache of keys and values with which a decoder reads a text once and then goes on token by token.

It is a pytree that goes in and comes out: nothing is hidden in a module, every shape is static, and one compiled step
serves all tokens. Prompts of unequal length are padded on either side; segments and positions tell the rows apart, so
that all rows write to the same slot.

Layout. Keys and values lie as [B, G, S, K], heads before slots: a step then multiplies with the cache as it lies, where
[B, S, G, K] would be transposed by every step. And a layer attends to the old slots and to its own new tokens side by
side; all layers' new tokens are written at the end, after the last read. Written first and read back, XLA:CPU copies a
donated cache several times a step. `python benchmarks/decode_layout.py` on 2 cores, one layer's step in float32 with 12
heads of 64 and 1,024 slots: 2.5 ms a step written first as [B, S, G, K], 3.4 ms written first as [B, G, S, K], 0.77 ms
so; for 8 rows 29.3, 7.1 and 6.4 ms.

Legend of the shape suffixes: L layers, B batch, T new tokens, S slots, H heads, G heads of keys, K width of a head.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxbig.errors import UserError
from jaxbig.models.attention import Where, attention, mask


class Codes(NamedTuple):
    """Keys or values in 8 bits, ``scale * code``.

    Attributes:
        code: int8 [..., S, K], -127 ... 127.
        scale: float32 at least, [..., S], the largest magnitude of each slot's head divided by 127.
    """

    code: jax.Array
    scale: jax.Array


class Cache(NamedTuple):
    """What a decoder remembers.

    Attributes:
        keys, values: of unrolled layers a tuple of L arrays [B, G, S, K], of scanned ones an array [L, B, G, S, K];
            `Codes` in place of each array in an int8 cache. Keys are stored as they are compared, rotated.
        positions: int32 [B, S].
        segments: int32 [B, S]; 0 is an empty slot or padding, which no token of another segment attends to.
        index: int32 scalar, the next free slot, the same for all rows. Slots from it on are empty, whatever they hold:
            a cache is taken back to n tokens by ``cache._replace(index=n)``.
    """

    keys: Any
    values: Any
    positions: jax.Array
    segments: jax.Array
    index: jax.Array


def empty_cache(module: Any, batch: int, length: int, dtype: Any = None, int8: bool = False) -> Cache:
    """A cache in which nothing stands yet.

    Args:
        module: a decoder; its ``layers, kv_heads, head_width, scan_layers, dtype`` say the shapes. Layers with a
            sliding window have as many slots as the others, and their mask does the rest.
        batch: rows B.
        length: slots S, for the prompt, its padding and all that is to be generated.
        dtype: of keys and values; None: the module's dtype, or float32.
        int8: keys and values as `Codes`, a quarter of float32's bytes and 4 / K more. Each entry is off by no more than
            1/254 of the largest magnitude in its slot's head, and the entries of the newest tokens, which are read as
            they are, by nothing.

    Returns:
        the cache; 2 L B G S K entries.

    Example:
        >>> from jaxbig.models.llama import Llama
        >>> cache = empty_cache(Llama(9, 8, layers=2, heads=2, kv_heads=1, head_width=4, hidden=12), batch=3, length=16)
        >>> len(cache.keys), cache.keys[0].shape, int(cache.index)
        (2, (3, 1, 16, 4), 0)

    Reference:
        Pope et al. (2022), "Efficiently scaling Transformer inference", arXiv:2211.05102.
    """
    dtype = dtype or module.dtype or jnp.float32
    shape = (batch, module.kv_heads, length, module.head_width)

    def zeros(shape: tuple[int, ...]) -> Any:
        if not int8:
            return jnp.zeros(shape, dtype)
        return Codes(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1], jnp.promote_types(dtype, jnp.float32)))

    def stack() -> Any:
        return (
            zeros((module.layers, *shape)) if module.scan_layers else tuple(zeros(shape) for _ in range(module.layers))
        )

    positions, segments = (jnp.zeros((batch, length), jnp.int32) for _ in range(2))  # two arrays: both can be donated
    return Cache(stack(), stack(), positions, segments, jnp.int32(0))


class Seen(NamedTuple):
    """What each new token may see.

    Attributes:
        new: bool [B, 1, T, T], of the tokens that come with it; None: all, without a cache.
        old: bool [B, 1, T, S], of the cache's slots; None without a cache.
    """

    new: Any
    old: Any = None


def place(tokens_BT: jax.Array, positions: Any, segments: Any, cache: Cache | None) -> Where:
    """Where new tokens stand.

    Args:
        tokens_BT: token ids.
        positions: int [B, T] or [1, T]; None: 0, 1, ... without a cache, else on from the cache's index.
        segments: int [B, T] or None, see `Where`; with a cache None means that all are of segment 1.
        cache: or None.

    Returns:
        positions and segments, [B, T] with a cache.

    Raises:
        UserError: more tokens than the cache has slots.
    """
    shape = tokens_BT.shape
    if positions is None:
        positions = jnp.arange(shape[1], dtype=jnp.int32)[None] + (0 if cache is None else cache.index)
    if cache is None:
        return Where(positions, segments)
    if shape[1] > cache.positions.shape[1]:
        raise UserError(f"cache: {shape[1]} tokens do not fit {cache.positions.shape[1]} slots; ask for a longer cache")
    segments = jnp.ones(shape, jnp.int32) if segments is None else segments
    return Where(*(jnp.broadcast_to(each, shape).astype(jnp.int32) for each in (positions, segments)))


def seen(at: Where, cache: Cache | None, window: int | None = None) -> Seen:
    """The causal mask of new tokens, over themselves and over what the cache holds; see `mask`."""
    new = mask(at, at, True, window)
    if cache is None:
        return Seen(new)
    old = mask(at, Where(cache.positions, cache.segments), True, window)
    return Seen(new, old & (jnp.arange(old.shape[-1]) < cache.index))


def attend(
    q_BTHK: jax.Array, new: tuple[jax.Array, jax.Array], old: Any, seen: Seen, **options: Any
) -> jax.Array:  # fmt: skip
    """Attention to new tokens and to a layer's slots of the cache.

    Args:
        q_BTHK: queries.
        new: keys and values of the new tokens, each [B, T, G, K].
        old: keys and values of the layer's slots, each [B, G, S, K] or `Codes`; None: there is no cache.
        seen: the masks.
        **options: of `attention`; `bias` is over the slots first, then over the new tokens.

    Returns:
        [B, T, H, K].

    Cost: one token reads every slot once and copies none; several copy the layer's slots once, transposed.
    """
    if old is None:
        return attention(q_BTHK, *new, seen.new, **options)
    if q_BTHK.shape[1] == 1:
        return _attend_one(q_BTHK, new, old, seen, **options)
    swap = lambda each: rearrange(_decoded(each), "B G S K -> B S G K").astype(new[0].dtype)  # noqa: E731
    keys, values = (jnp.concatenate([swap(a), b], axis=1) for a, b in zip(old, new, strict=True))
    return attention(q_BTHK, keys, values, jnp.concatenate([seen.old, seen.new], axis=-1), **options)


def _attend_one(
    q_BTHK: jax.Array, new: tuple[jax.Array, jax.Array], old: Any, seen: Seen, *, scale: float | None = None,
    bias: Any = None, softcap: float | None = None, dropout: Any = None,
) -> jax.Array:  # fmt: skip
    """`attend` for one query a row: scores of old slots and of the new one, one softmax, two products."""
    dtype, slots = q_BTHK.dtype, seen.old.shape[-1]
    wide = jnp.promote_types(dtype, jnp.float32)
    scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
    q_BGHK = rearrange(q_BTHK * jnp.asarray(scale, dtype), "B 1 (G H) K -> B G H K", G=new[0].shape[2])
    s_BGHS = jnp.einsum("BGHK,BGSK->BGHS", q_BGHK, _codes(old[0]).astype(dtype)).astype(wide) * _scales(old[0])
    mine_BGH1 = jnp.einsum("BGHK,BTGK->BGHT", q_BGHK, new[0]).astype(wide)
    s_BGHS = jnp.concatenate([s_BGHS, mine_BGH1], axis=-1)
    if softcap is not None:
        s_BGHS = softcap * jnp.tanh(s_BGHS / softcap)
    if bias is not None:
        split = s_BGHS.shape[1] if bias.shape[1] > 1 else 1
        s_BGHS = s_BGHS + rearrange(bias, "B (G H) 1 S -> B G H S", G=split).astype(wide)
    seen_B11S = jnp.concatenate([seen.old, seen.new], axis=-1)
    p_BGHS = jax.nn.softmax(jnp.where(seen_B11S, s_BGHS, jnp.finfo(wide).min), axis=-1)
    p_BGHS = p_BGHS if dropout is None else dropout(p_BGHS)
    theirs = (p_BGHS[..., :slots] * _scales(old[1])).astype(dtype)
    out_BGHK = jnp.einsum("BGHS,BGSK->BGHK", theirs, _codes(old[1]).astype(dtype))
    out_BGHK += jnp.einsum("BGHT,BTGK->BGHK", p_BGHS[..., slots:].astype(dtype), new[1])
    return rearrange(out_BGHK, "B G H K -> B 1 (G H) K")


def append(cache: Cache, keys: Any, values: Any, at: Where, after: jax.Array) -> Cache:
    """The cache with new tokens in its next slots.

    Args:
        cache: it is not changed; donated to a jitted step it is written in place.
        keys, values: of all layers, as the cache has them but each [B, T, G, K] or [L, B, T, G, K].
        at: where the tokens stand, of `place`.
        after: an array that depends on every read of the cache; writing waits for it. That is what lets XLA write in
            place: it cannot see by itself that no layer reads afterwards.

    Returns:
        the cache, its index T further. Beyond its last slot it is undefined: `full` says when.
    """
    # The index is never negative, so this is the index; XLA does not know, and has to have `after` first.
    index = jnp.maximum(cache.index, -(after.ravel()[0] > 0).astype(jnp.int32))

    def written(old: Any, new: jax.Array) -> Any:
        new = jnp.swapaxes(new, -2, -3)
        if isinstance(old, Codes):
            code, scale = _encoded(new, old.scale.dtype)
            return Codes(_put(old.code, code, index, -2), _put(old.scale, scale, index, -1))
        return _put(old, new.astype(old.dtype), index, -2)

    def all_written(old: Any, new: Any) -> Any:
        if isinstance(new, tuple):
            return tuple(written(*each) for each in zip(old, new, strict=True))
        return written(old, new)

    return Cache(
        all_written(cache.keys, keys),
        all_written(cache.values, values),
        _put(cache.positions, at.positions, index, 1),
        _put(cache.segments, at.segments, index, 1),
        cache.index + at.positions.shape[1],
    )


def longer(cache: Cache, length: int) -> Cache:
    """The cache with so many slots, the new ones empty; what it holds and its index stay.

    Args:
        cache: with no more slots than that.
        length: slots.

    Example:
        >>> from jaxbig.models.llama import Llama
        >>> cache = empty_cache(Llama(9, 8, layers=1, heads=2, kv_heads=2, head_width=4, hidden=12), batch=1, length=4)
        >>> longer(cache, 6).values[0].shape
        (1, 2, 6, 4)
    """
    more = length - cache.positions.shape[1]

    def stored(leaf: Any) -> Any:
        if isinstance(leaf, Codes):
            return Codes(_padded(leaf.code, more, -2), _padded(leaf.scale, more, -1))
        return _padded(leaf, more, -2)

    keys, values = (
        jax.tree.map(stored, each, is_leaf=lambda leaf: isinstance(leaf, Codes)) for each in (cache.keys, cache.values)
    )
    return Cache(keys, values, _padded(cache.positions, more, 1), _padded(cache.segments, more, 1), cache.index)


def _padded(old: jax.Array, more: int, axis: int) -> jax.Array:
    widths = [(0, 0)] * old.ndim
    widths[axis] = (0, more)
    return jnp.pad(old, widths)


def full(cache: Cache, tokens: int) -> jax.Array:
    """Whether so many more tokens do not fit: bool scalar.

    Example:
        >>> from jaxbig.models.llama import Llama
        >>> cache = empty_cache(Llama(9, 8, layers=1, heads=2, kv_heads=2, head_width=4, hidden=12), batch=1, length=4)
        >>> bool(full(cache, 4)), bool(full(cache, 5))
        (False, True)
    """
    return cache.index + tokens > cache.positions.shape[1]


def _put(old: jax.Array, new: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(old, new, index, axis % old.ndim)


def _encoded(x: jax.Array, dtype: Any) -> Codes:
    scale = (jnp.abs(x).max(axis=-1) / 127).astype(dtype)
    code = jnp.round(x / jnp.where(scale > 0, scale, 1)[..., None])
    return Codes(jnp.clip(code, -127, 127).astype(jnp.int8), scale)


def _decoded(stored: Any) -> jax.Array:
    return stored.code * stored.scale[..., None] if isinstance(stored, Codes) else stored


def _codes(stored: Any) -> jax.Array:
    return stored.code if isinstance(stored, Codes) else stored


def _scales(stored: Any) -> Any:
    """What products with `_codes` still have to be multiplied with, [B, G, 1, S] or 1."""
    return stored.scale[:, :, None] if isinstance(stored, Codes) else 1
