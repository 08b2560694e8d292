"""The classic small convolutional network for digits.

Legend of the shape suffixes: B batch, H height, W width, C channels, D features, N classes.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from einops import rearrange

from jaxbig.errors import UserError
from jaxbig.models.patches import PatchConv
from jaxbig.models.pool import max_pool

HE_NORMAL = nn.initializers.he_normal()


class CNN(nn.Module):
    """Convolutions 3x3 with relu and 2x2 max pooling, one hidden dense layer, and a head.

    Submodules: ``conv_0``, ``conv_1``, ..., ``dense``, ``head``. The defaults are the network of many MNIST examples:
    conv 32 - pool - conv 64 - pool - dense 128 - dense 10. For 8x8 images use ``padding="SAME"``.

    Args:
        num_classes: width N of the output.
        channels: channels of each convolution.
        hidden: width of the dense layer before the head.
        padding: "VALID" or "SAME".
        patches: convolutions as products (`PatchConv`): the same parameters, and results to rounding. The quicker way
            to train on a CPU, most of all with gradients accumulated over parts of 32; elsewhere it is slower.
        dropout: rate before the head, used when called with ``train=True`` (needs a "dropout" key).
        dtype: dtype of the computation; None: that of the inputs and parameters. Parameters are float32.

    Returns:
        logits [B, N].

    Raises:
        UserError: the images are too small for so many convolutions, or are not [B, H, W, C].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = CNN(channels=(4, 8), hidden=16, padding="SAME")
        >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 1)))["params"]
        >>> sorted(params), params["dense"]["kernel"].shape
        (['conv_0', 'conv_1', 'dense', 'head'], (32, 16))

    Reference:
        LeCun, Bottou, Bengio, Haffner (1998), "Gradient-based learning applied to document recognition", for the kind
        of network; He, Zhang, Ren, Sun (2015), arXiv:1502.01852, for the initialisation (normal, variance 2/fan_in,
        zero biases). Deviations from LeNet-5: relu, maximum pooling, widths, no Gaussian output.
    """

    num_classes: int = 10
    channels: Sequence[int] = (32, 64)
    hidden: int = 128
    padding: str = "VALID"
    patches: bool = False
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        if x_BHWC.ndim != 4:
            raise UserError(f"CNN: images of shape {x_BHWC.shape}; give [batch, height, width, channels]")
        images = x_BHWC.shape
        convolution = functools.partial(PatchConv, pool=2) if self.patches else nn.Conv
        for index, channels in enumerate(self.channels):
            conv = convolution(
                channels, (3, 3), padding=self.padding, kernel_init=HE_NORMAL, dtype=self.dtype, name=f"conv_{index}"
            )
            # Relu and pooling commute; where the convolution pools, relu has a quarter to do.
            x_BHWC = nn.relu(conv(x_BHWC)) if self.patches else max_pool(nn.relu(conv(x_BHWC)))
            if 0 in x_BHWC.shape[1:3]:
                raise UserError(
                    f"CNN: images of shape {images} vanish after conv_{index} with padding={self.padding!r}; "
                    "use padding='SAME', fewer channels, or larger images"
                )
        x_BD = rearrange(x_BHWC, "B H W C -> B (H W C)")
        x_BD = nn.relu(nn.Dense(self.hidden, kernel_init=HE_NORMAL, dtype=self.dtype, name="dense")(x_BD))
        x_BD = nn.Dropout(self.dropout, deterministic=not train)(x_BD)
        return nn.Dense(self.num_classes, kernel_init=HE_NORMAL, dtype=self.dtype, name="head")(x_BD)
