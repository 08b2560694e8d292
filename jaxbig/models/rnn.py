"""Recurrent networks (LSTM, GRU) over sequences of different lengths.

Legend of the shape suffixes: B batch, T time, D features of an input, H hidden width of one direction, G gates times
H, S width of all directions together (H or 2 H), N classes.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce

from jaxbig.errors import UserError

GATES = {"lstm": 4, "gru": 3}


class Recurrent(nn.Module):
    """One recurrent layer in one direction. σ is the logistic function, * the product of elements::

        lstm   i, f, g, o = W x_t + U h + b         c' = σ(f) * c + σ(i) * tanh(g)       h' = σ(o) * tanh(c')
        gru    r, z, n = W x_t + b, and U h         h' = (1 - σ(z)) * tanh(n_x + σ(r) * (n_h + b_n)) + σ(z) * h

    Parameters: ``input/kernel`` W [D, G], ``input/bias`` b [G], ``recurrent_kernel`` U [H, G], and for gru
    ``candidate_bias`` b_n [H]. Gates lie side by side in the order above, which is torch's.

    Args:
        hidden: H.
        cell: "lstm" or "gru".
        reverse: from the last valid step to the first.
        remat: recompute each step's gates in the backward pass; memory for one state a step, not for its gates.
        dtype: dtype of the computation. Parameters are float32.

    Returns:
        (states [B, T, H], 0 where a step is not valid; state after the last step that was read [B, H]).

    Raises:
        UserError: an unknown `cell`.

    Example:
        >>> layer, x = Recurrent(3, "gru"), jnp.ones((2, 5, 4))
        >>> params = layer.init(jax.random.key(0), x, jnp.ones((2, 5), bool))["params"]
        >>> {name: leaf.shape for name, leaf in params.items() if name != "input"}
        {'recurrent_kernel': (3, 9), 'candidate_bias': (3,)}

    Reference:
        Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000), whose bias starts at 1
        (Jozefowicz et al., 2015); Cho et al. (2014), arXiv:1406.1078. W of each gate Glorot uniform, U of each gate
        orthogonal (Saxe et al., 2013, arXiv:1312.6120). Deviations: GRU's reset gate acts after the product with U, as
        in cuDNN, torch and flax. torch's second bias vectors would only be added to the first; theirs summed is ours,
        except for b_n, which the reset gate multiplies.

    Cost: the products with W are one for all steps; a step multiplies with U alone.
    """

    hidden: int
    cell: str = "lstm"
    reverse: bool = False
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, valid_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.cell not in GATES:
            raise UserError(f"Recurrent: cell={self.cell!r}; use 'lstm' or 'gru'")
        width, gates = self.hidden, GATES[self.cell]
        # What is not read must not be multiplied either: 0 * nan in a gradient is nan.
        x_BTD = jnp.where(valid_BT[..., None], x_BTD, 0)
        x_BTG = nn.Dense(
            gates * width,
            kernel_init=_per_gate(nn.initializers.xavier_uniform(), gates),
            bias_init=_remembering if self.cell == "lstm" else nn.initializers.zeros,
            dtype=self.dtype,
            name="input",
        )(x_BTD)
        u_HG = self.param("recurrent_kernel", _per_gate(nn.initializers.orthogonal(), gates), (width, gates * width))
        u_HG = u_HG.astype(x_BTG.dtype)
        h_BH = jnp.zeros((x_BTG.shape[0], width), x_BTG.dtype)
        if self.cell == "lstm":
            step, state = _lstm(u_HG), (h_BH, h_BH)
        else:
            step, state = _gru(u_HG, self.param("candidate_bias", nn.initializers.zeros, (width,))), (h_BH,)

        def masked(state, inputs):
            x_BG, valid_B1 = inputs
            new = tuple(jnp.where(valid_B1, a, b) for a, b in zip(step(state, x_BG), state, strict=True))
            return new, jnp.where(valid_B1, new[0], 0)

        body = jax.checkpoint(masked, prevent_cse=False) if self.remat else masked
        inputs = rearrange(x_BTG, "B T G -> T B G"), rearrange(valid_BT, "B T -> T B 1")
        state, h_TBH = jax.lax.scan(body, state, inputs, reverse=self.reverse)
        return rearrange(h_TBH, "T B H -> B T H"), state[0]


def _lstm(u_HG: jax.Array) -> Callable:
    def step(state, x_BG):
        h_BH, c_BH = state
        i_BH, f_BH, g_BH, o_BH = jnp.split(x_BG + h_BH @ u_HG, 4, axis=-1)
        c_BH = nn.sigmoid(f_BH) * c_BH + nn.sigmoid(i_BH) * jnp.tanh(g_BH)
        return nn.sigmoid(o_BH) * jnp.tanh(c_BH), c_BH

    return step


def _gru(u_HG: jax.Array, b_H: jax.Array) -> Callable:
    def step(state, x_BG):
        (h_BH,) = state
        r_BH, z_BH, n_BH = jnp.split(x_BG, 3, axis=-1)
        hr_BH, hz_BH, hn_BH = jnp.split(h_BH @ u_HG, 3, axis=-1)
        r_BH, z_BH = nn.sigmoid(r_BH + hr_BH), nn.sigmoid(z_BH + hz_BH)
        n_BH = jnp.tanh(n_BH + r_BH * (hn_BH + b_H.astype(hn_BH.dtype)))
        return ((1 - z_BH) * n_BH + z_BH * h_BH,)

    return step


def _per_gate(init: Callable, gates: int) -> Callable:
    """Each gate's kernel initialised as if it were alone."""

    def kernels(key, shape, dtype=jnp.float32):
        keys = jax.random.split(key, gates)
        return jnp.concatenate([init(one, (shape[0], shape[1] // gates), dtype) for one in keys], axis=1)

    return kernels


def _remembering(key, shape, dtype=jnp.float32):
    """Zero, and one for the forget gate."""
    return jnp.repeat(jnp.array([0, 1, 0, 0], dtype), shape[0] // 4)


class RecurrentStack(nn.Module):
    """Layers of `Recurrent`, each over the states of the one below; both directions side by side.

    Submodules: ``layer_0``, ``layer_1``, ..., and with `bidirectional` ``layer_0_back``, ...

    Args:
        hidden: H of each direction.
        layers: number of layers.
        cell: "lstm" or "gru".
        bidirectional: a second network from the last valid step to the first; states are [forward, backward].
        dropout: rate on the states between two layers, used when called with ``train=True`` (needs a "dropout" key).
        remat, dtype: see `Recurrent`.

    Returns:
        (states of the last layer [B, T, S], 0 at padding; its states after the last step that was read [B, S]: after
        step ``length - 1`` forward, after step 0 backward, 0 for a length of 0).

    Example:
        >>> stack, x = RecurrentStack(3, layers=2, bidirectional=True), jnp.ones((2, 5, 4))
        >>> (states, last), _ = jax.eval_shape(stack.init_with_output, jax.random.key(0), x, jnp.array([5, 2]))
        >>> states.shape, last.shape
        ((2, 5, 6), (2, 6))

    Reference:
        Schuster and Paliwal (1997), "Bidirectional recurrent neural networks"; Zaremba et al. (2014),
        arXiv:1409.2329, for dropout on the connections that are not recurrent.
    """

    hidden: int
    layers: int = 1
    cell: str = "lstm"
    bidirectional: bool = False
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, lengths_B: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        valid_BT = valid_steps(x_BTD, lengths_B)
        states_BTS, last_BS = x_BTD, x_BTD[:, 0]
        for index in range(self.layers):
            if index:
                states_BTS = nn.Dropout(self.dropout, deterministic=not train)(states_BTS)
            ways = [
                Recurrent(self.hidden, self.cell, back, self.remat, self.dtype, name=name)(states_BTS, valid_BT)
                for name, back in ((f"layer_{index}", False), (f"layer_{index}_back", True))
                if self.bidirectional or not back
            ]
            states_BTS, last_BS = (jnp.concatenate(parts, axis=-1) for parts in zip(*ways, strict=True))
        return states_BTS, last_BS


def valid_steps(x: jax.Array, lengths_B: jax.Array | None) -> jax.Array:
    """Which steps of a padded batch are real: ``t < lengths[b]``.

    Args:
        x: [B, T, ...].
        lengths_B: numbers of real steps, integers [B]; None: all are.

    Returns:
        booleans [B, T].

    Raises:
        UserError: `lengths_B` is not [B].

    Example:
        >>> valid_steps(jnp.zeros((2, 3)), jnp.array([1, 3])).tolist()
        [[True, False, False], [True, True, True]]
    """
    if lengths_B is None:
        return jnp.ones(x.shape[:2], bool)
    if lengths_B.shape != x.shape[:1]:
        raise UserError(f"lengths of shape {lengths_B.shape} for a batch of {x.shape[0]}; give one number a sequence")
    return jnp.arange(x.shape[1]) < lengths_B[:, None]


class RNN(nn.Module):
    """Recurrent classifier: (embedding ->) `RecurrentStack` -> pool -> head. Padding influences nothing.

    Submodules: ``embed`` (for tokens), ``stack``, ``head``.

    Args:
        num_classes: width N of the output.
        hidden, layers, cell, bidirectional: see `RecurrentStack`.
        vocabulary: number of tokens, for inputs of ids; None: inputs are features.
        embedding: width of the token embeddings.
        pool: "last" (the state after the last valid step, of each direction), "mean" (over the valid steps), or
            "sequence" (no pooling: logits for every step).
        dropout: rate between layers and before the head, used when called with ``train=True``.
        remat: see `Recurrent`.
        dtype: dtype of the computation. Parameters are float32.

    Call:
        ``(x, lengths=None, train=False)``: x ids [B, T] or features [B, T, D], padded behind; `lengths` integers [B],
        None: nothing is padded.

    Returns:
        logits [B, N], or [B, T, N] for ``pool="sequence"`` (at padding they mean nothing).

    Raises:
        UserError: an unknown `pool` or `cell`, or inputs that are not as said above.

    Example:
        >>> model = RNN(num_classes=2, hidden=4, vocabulary=10, embedding=3, bidirectional=True)
        >>> ids, lengths = jnp.array([[1, 2, 3], [4, 0, 0]]), jnp.array([3, 1])
        >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), ids, lengths)
        >>> logits.shape, sorted(variables["params"])
        ((2, 2), ['embed', 'head', 'stack'])

    Reference:
        see `Recurrent` and `RecurrentStack`. Embeddings normal 1 (torch's), head LeCun normal.
    """

    num_classes: int
    hidden: int = 128
    layers: int = 1
    cell: str = "lstm"
    bidirectional: bool = False
    vocabulary: int | None = None
    embedding: int = 128
    pool: str = "last"
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None = None, train: bool = False) -> jax.Array:
        if self.pool not in ("last", "mean", "sequence"):
            raise UserError(f"RNN: pool={self.pool!r}; use 'last', 'mean' or 'sequence'")
        tokens = self.vocabulary is not None
        if x.ndim != (2 if tokens else 3) or tokens != jnp.issubdtype(x.dtype, jnp.integer):
            wanted = "integers [batch, time]" if tokens else "features [batch, time, width], or set vocabulary for ids"
            raise UserError(f"RNN: inputs of shape {x.shape}, {x.dtype}; give {wanted}")
        if self.vocabulary is not None:
            normal = nn.initializers.normal(1.0)
            x = nn.Embed(self.vocabulary, self.embedding, embedding_init=normal, dtype=self.dtype, name="embed")(x)
        states_BTS, last_BS = RecurrentStack(
            self.hidden,
            self.layers,
            self.cell,
            self.bidirectional,
            self.dropout,
            self.remat,
            self.dtype,
            name="stack",
        )(x, lengths, train)
        if self.pool == "last":
            y = last_BS
        else:
            y = states_BTS if self.pool == "sequence" else mean_over_steps(states_BTS, lengths)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(y)


def mean_over_steps(states_BTS: jax.Array, lengths_B: jax.Array | None) -> jax.Array:
    """Mean of states over the valid steps, 0 where there are none; states at padding are 0.

    Example:
        >>> mean_over_steps(jnp.array([[[2.0], [4.0]], [[3.0], [0.0]]]), jnp.array([2, 1])).tolist()
        [[3.0], [3.0]]
    """
    count_BT = valid_steps(states_BTS, lengths_B)
    count_B1 = jnp.maximum(count_BT.sum(axis=1, keepdims=True), 1).astype(states_BTS.dtype)
    return reduce(states_BTS, "B T S -> B S", "sum") / count_B1
