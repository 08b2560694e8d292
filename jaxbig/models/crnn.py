"""A convolutional recurrent network for sound, over log-mel spectrograms of different lengths.

Legend of the shape suffixes: B batch, T frames, F mel filters, C channels, D features of a frame, S states of the
recurrent layers, N classes.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxbig.errors import UserError
from jaxbig.models.patches import PatchConv
from jaxbig.models.pool import max_pool
from jaxbig.models.rnn import RecurrentStack, mean_over_steps, valid_steps

HE_NORMAL = nn.initializers.he_normal()


class CRNN(nn.Module):
    """Convolutions 3x3 over frames and filters, recurrent layers over frames, mean and maximum over frames, head::

        x <- relu(norm(maxpool(conv(x))))        once a convolution; norm over the channels of a place
        logits = W [mean_t(states_t), max_t(states_t)] + b

    Poolings halve the number of filters, the first of them that of frames too; padding influences nothing. Submodules:
    ``conv_0``, ``norm_0``, ..., ``stack``, ``head``.

    Args:
        num_classes: width N of the output.
        channels: channels of each convolution.
        halvings: so many of the poolings, the first, halve the number of frames too; None: all.
        hidden, layers, cell, bidirectional: of the recurrent layers, see `RecurrentStack`.
        dropout: rate on the frames' features, between recurrent layers and before the head, used when called with
            ``train=True`` (needs a "dropout" key).
        dtype: dtype of the computation; the statistics of the norms are float32 always. Parameters are float32.

    Call:
        ``(x_BTF, lengths=None, train=False)``: log-mel spectrograms, see `log_mel`; `lengths` numbers of real frames,
        integers [B], None: all are (`frame_count` gives them).

    Returns:
        logits [B, N]. A sound of less than 2 ** halvings frames has the head's bias.

    Raises:
        UserError: the spectrograms are not [B, T, F], or too small for so many poolings; `halvings` is above
            their number.

    Example:
        >>> model = CRNN(num_classes=3, channels=(4, 8), hidden=5)
        >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 9, 8)))
        >>> logits.shape, variables["params"]["stack"]["layer_0"]["input"]["kernel"].shape
        ((2, 3), (16, 15))

    Reference:
        Çakır, Parascandolo, Heittola, Huttunen, Virtanen (2017), "Convolutional recurrent neural networks for
        polyphonic sound event detection", arXiv:1702.06286. Deviations: layer norm over channels in place of batch
        norm, so that no example depends on another, and after the pooling, where it has a quarter to do; pooling over
        frames too; one label for a sound, not for a frame.
    """

    num_classes: int
    channels: Sequence[int] = (32, 64)
    halvings: int | None = None
    hidden: int = 64
    layers: int = 1
    cell: str = "gru"
    bidirectional: bool = True
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTF: jax.Array, lengths: jax.Array | None = None, train: bool = False) -> jax.Array:
        poolings = len(self.channels)
        halvings = poolings if self.halvings is None else self.halvings
        if not 0 <= halvings <= poolings:
            raise UserError(f"CRNN: halvings={halvings}; use 0 to {poolings}, the number of convolutions")
        if x_BTF.ndim != 3 or x_BTF.shape[1] < 2**halvings or x_BTF.shape[2] < 2**poolings:
            raise UserError(
                f"CRNN: spectrograms of shape {x_BTF.shape}; give [batch, frames, filters] with at least {2**halvings} "
                f"frames and {2**poolings} filters, or fewer channels"
            )
        valid_BT = valid_steps(x_BTF, lengths)
        x_BTFC = x_BTF[..., None]
        for index, channels in enumerate(self.channels):
            # What lies behind the last frame reads as zeros, as it would at the end of a sound alone.
            x_BTFC = jnp.where(valid_BT[..., None, None], x_BTFC, 0)
            # Patches of the one channel are few: a product is quicker than XLA's convolution on a CPU.
            conv = nn.Conv if index else PatchConv
            x_BTFC = conv(channels, (3, 3), kernel_init=HE_NORMAL, dtype=self.dtype, name=f"conv_{index}")(x_BTFC)
            if index < halvings:
                x_BTFC, lengths = max_pool(x_BTFC), None if lengths is None else lengths // 2
            else:
                even = x_BTFC.shape[2] // 2 * 2
                x_BTFC = jnp.maximum(x_BTFC[:, :, 0:even:2], x_BTFC[:, :, 1:even:2])
            x_BTFC = nn.relu(nn.LayerNorm(dtype=self.dtype, name=f"norm_{index}")(x_BTFC))
            valid_BT = valid_steps(x_BTFC, lengths)
        x_BTD = rearrange(x_BTFC, "B T F C -> B T (F C)")
        x_BTD = nn.Dropout(self.dropout, deterministic=not train)(x_BTD)
        stack = RecurrentStack(
            self.hidden, self.layers, self.cell, self.bidirectional, self.dropout, dtype=self.dtype, name="stack"
        )
        states_BTS, _ = stack(x_BTD, lengths, train)
        # States lie between -1 and 1, so padding at -1 is never above one.
        highest_BS = jnp.where(valid_BT[..., None], states_BTS, -1).max(axis=1)
        highest_BS = jnp.where(valid_BT.any(axis=1)[:, None], highest_BS, 0)
        x_BS = jnp.concatenate([mean_over_steps(states_BTS, lengths), highest_BS], axis=-1)
        x_BS = nn.Dropout(self.dropout, deterministic=not train)(x_BS)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x_BS)
