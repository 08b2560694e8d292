"""A convolution as one product, for programs in which XLA has no quick convolution.

Legend of the shape suffixes: B batch, H height, W width, C channels in, O channels out, P entries of a patch.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.dtypes import promote_dtype

from jaxbig.errors import UserError
from jaxbig.models.pool import max_pool


class PatchConv(nn.Module):
    """Convolution of stride 1 as a product of patches with the kernel; parameters and results of ``nn.Conv``::

        y[b, h, w] = Σ_{i, j} x[b, h + i, w + j] @ kernel[i, j] + bias      as [patches of x] @ kernel.reshape(P, O)

    With ``pool = p`` what comes out is ``max_pool(y, p)``: places that fill no window are never computed, and the bias
    is added to maxima, which is the same, rounding included, and less to do.

    XLA's CPU back end computes a convolution inside a loop (`jax.lax.scan`, so gradients accumulated over parts of a
    batch) 10 to 30 times slower than outside; a product it does not.

    Args:
        features: number O of output channels.
        kernel_size: (rows, columns) of the kernel.
        padding: "VALID" or "SAME".
        pool: side of the windows of a maximum pooling; 1: none.
        kernel_init: initialiser of the kernel [rows, columns, C, O].
        dtype: dtype of the computation; None: that of the inputs and parameters. Parameters are float32.

    Returns:
        array [B, H' // pool, W' // pool, O].

    Raises:
        UserError: another padding, or a pooling below 1.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
        >>> conv, ours = nn.Conv(4, (3, 3)), PatchConv(4, (3, 3))
        >>> params = conv.init(jax.random.key(1), x)
        >>> bool(jnp.allclose(ours.apply(params, x), conv.apply(params, x), atol=1e-5))
        True

    Reference:
        Chellapilla, Puri, Simard (2006), "High performance convolutional neural networks for document processing".

    Cost: the patches hold rows * columns copies of x. `benchmarks/cnn_step.py` compares it with ``nn.Conv``.
    """

    features: int
    kernel_size: tuple[int, int]
    padding: str = "SAME"
    pool: int = 1
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        if self.padding not in ("VALID", "SAME"):
            raise UserError(f"PatchConv: padding={self.padding!r}; use 'VALID' or 'SAME'")
        if self.pool < 1:
            raise UserError(f"PatchConv: pool={self.pool}; use the side of the windows, or 1 for no pooling")
        rows, columns = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (rows, columns, x_BHWC.shape[-1], self.features))
        bias_O = self.param("bias", nn.initializers.zeros, (self.features,))
        x_BHWC, kernel, bias_O = promote_dtype(x_BHWC, kernel, bias_O, dtype=self.dtype)
        if self.padding == "SAME":
            around = [((side - 1) // 2, side // 2) for side in (rows, columns)]
            x_BHWC = jnp.pad(x_BHWC, ((0, 0), *around, (0, 0)))
        height, width = x_BHWC.shape[1] - rows + 1, x_BHWC.shape[2] - columns + 1
        height, width = height // self.pool * self.pool, width // self.pool * self.pool
        places = ((i, j) for i in range(rows) for j in range(columns))
        patches_BHWP = jnp.concatenate([x_BHWC[:, i : i + height, j : j + width] for i, j in places], axis=-1)
        # Two axes, because XLA's CPU back end is slower at the gradient of a product with more.
        y = rearrange(patches_BHWP, "B H W P -> (B H W) P") @ rearrange(kernel, "i j C O -> (i j C) O")
        y_BHWO = rearrange(y, "(B H W) O -> B H W O", H=height, W=width)
        return (y_BHWO if self.pool == 1 else max_pool(y_BHWO, self.pool)) + bias_O
