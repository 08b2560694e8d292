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
from jaxbig.models.pool import max_pool
from jaxbig.models.rnn import RecurrentStack, mean_over_steps, valid_steps

HE_NORMAL = nn.initializers.he_normal()


class CRNN(nn.Module):
    """Convolutions 3x3 over frames and filters, recurrent layers over frames, mean over frames, head::

        x <- maxpool_2x2(relu(norm(conv(x))))        once a convolution; norm over the channels of a place
        logits = W mean_t(states_t) + b

    Each pooling halves the number of frames; padding influences nothing. Submodules: ``conv_0``, ``norm_0``, ...,
    ``stack``, ``head``.

    Args:
        num_classes: width N of the output.
        channels: channels of each convolution.
        hidden, layers, cell, bidirectional: of the recurrent layers, see `RecurrentStack`.
        dropout: rate on the frames' features, between recurrent layers and before the head, used when called with
            ``train=True`` (needs a "dropout" key).
        dtype: dtype of the computation; the statistics of the norms are float32 always. Parameters are float32.

    Call:
        ``(x_BTF, lengths=None, train=False)``: log-mel spectrograms, see `log_mel`; `lengths` numbers of real frames,
        integers [B], None: all are (`frame_count` gives them).

    Returns:
        logits [B, N]. A sound of less than 2 ** len(channels) frames has the head's bias.

    Raises:
        UserError: the spectrograms are not [B, T, F], or too small for so many poolings.

    Example:
        >>> model = CRNN(num_classes=3, channels=(4, 8), hidden=5)
        >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 9, 8)))
        >>> logits.shape, variables["params"]["stack"]["layer_0"]["input"]["kernel"].shape
        ((2, 3), (16, 15))

    Reference:
        Çakır, Parascandolo, Heittola, Huttunen, Virtanen (2017), "Convolutional recurrent neural networks for
        polyphonic sound event detection", arXiv:1702.06286. Deviations: layer norm over channels in place of batch
        norm, so that no example depends on another; pooling over frames too; one label for a sound, not for a frame.
    """

    num_classes: int
    channels: Sequence[int] = (32, 64)
    hidden: int = 64
    layers: int = 1
    cell: str = "gru"
    bidirectional: bool = True
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTF: jax.Array, lengths: jax.Array | None = None, train: bool = False) -> jax.Array:
        least = 2 ** len(self.channels)
        if x_BTF.ndim != 3 or min(x_BTF.shape[1:]) < least:
            raise UserError(
                f"CRNN: spectrograms of shape {x_BTF.shape}; give [batch, frames, filters] with at least {least} "
                "of both, or fewer channels"
            )
        valid_BT = valid_steps(x_BTF, lengths)
        x_BTFC = x_BTF[..., None]
        for index, channels in enumerate(self.channels):
            # What lies behind the last frame reads as zeros, as it would at the end of a sound alone.
            x_BTFC = jnp.where(valid_BT[..., None, None], x_BTFC, 0)
            x_BTFC = nn.Conv(channels, (3, 3), kernel_init=HE_NORMAL, dtype=self.dtype, name=f"conv_{index}")(x_BTFC)
            x_BTFC = max_pool(nn.relu(nn.LayerNorm(dtype=self.dtype, name=f"norm_{index}")(x_BTFC)))
            lengths = None if lengths is None else lengths // 2
            valid_BT = valid_steps(x_BTFC, lengths)
        x_BTD = rearrange(x_BTFC, "B T F C -> B T (F C)")
        x_BTD = nn.Dropout(self.dropout, deterministic=not train)(x_BTD)
        stack = RecurrentStack(
            self.hidden, self.layers, self.cell, self.bidirectional, self.dropout, dtype=self.dtype, name="stack"
        )
        states_BTS, _ = stack(x_BTD, lengths, train)
        x_BS = nn.Dropout(self.dropout, deterministic=not train)(mean_over_steps(states_BTS, lengths))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x_BS)
