"""Residual networks for images, large and small.

Legend of the shape suffixes: B batch, H height, W width, C channels, N classes.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce

from jaxbig.errors import UserError
from jaxbig.models.pool import max_pool_overlapping

HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# depth -> residual blocks of each stage, whether they are bottlenecks
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


class ResidualBlock(nn.Module):
    """y = relu(F(x) + shortcut(x)), F = two 3x3 convolutions, or 1x1 - 3x3 - 1x1 where the outer has 4 times as many
    channels as the others (bottleneck); a batch norm after every convolution, relu between.

    Args:
        channels: C of the 3x3 convolutions.
        stride: of the (first) 3x3 convolution.
        bottleneck: three convolutions.
        projection: where the shape changes, the shortcut is a strided 1x1 convolution; else it is every stride-th
            pixel with channels of zeros appended, which has no parameters.
        zero_scale: the last batch norm's scale starts at zero, so that the block starts as its shortcut.
        train: use and update the batch's own statistics.
        dtype: dtype of the computation; batch statistics are float32 at least.

    Returns:
        array [B, ceil(H / stride), ceil(W / stride), C or 4 C].

    Example:
        >>> block = ResidualBlock(8, stride=2)
        >>> variables = jax.eval_shape(block.init, jax.random.key(0), jnp.ones((1, 6, 6, 4)))
        >>> sorted(variables["params"])
        ['conv_0', 'conv_1', 'norm_0', 'norm_1', 'shortcut', 'shortcut_norm']
    """

    channels: int
    stride: int = 1
    bottleneck: bool = False
    projection: bool = True
    zero_scale: bool = False
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        plan = [(3, self.channels, self.stride), (3, self.channels, 1)]
        if self.bottleneck:
            plan = [(1, self.channels, 1), (3, self.channels, self.stride), (1, 4 * self.channels, 1)]
        y_BHWC = x_BHWC
        for index, (side, channels, stride) in enumerate(plan):
            y_BHWC = _conv(channels, side, stride, self.dtype, f"conv_{index}")(y_BHWC)
            last = index == len(plan) - 1
            y_BHWC = _norm(self.train, self.dtype, f"norm_{index}", zero=last and self.zero_scale)(y_BHWC)
            y_BHWC = y_BHWC if last else nn.relu(y_BHWC)
        if x_BHWC.shape != y_BHWC.shape:
            if self.projection:
                x_BHWC = _conv(y_BHWC.shape[-1], 1, self.stride, self.dtype, "shortcut")(x_BHWC)
                x_BHWC = _norm(self.train, self.dtype, "shortcut_norm")(x_BHWC)
            else:
                missing = y_BHWC.shape[-1] - x_BHWC.shape[-1]
                strided_BHWC = x_BHWC[:, :: self.stride, :: self.stride]
                x_BHWC = jnp.pad(strided_BHWC, ((0, 0), (0, 0), (0, 0), (0, missing)))
        return nn.relu(x_BHWC + y_BHWC)


def _conv(channels: int, side: int, stride: int, dtype: Any, name: str) -> nn.Conv:
    # The same padding on both sides, also under a stride, where "SAME" would pad less on the first side.
    sides = ((side // 2, side // 2),) * 2
    return nn.Conv(channels, (side, side), stride, sides, use_bias=False, kernel_init=HE_NORMAL, dtype=dtype, name=name)


def _norm(train: bool, dtype: Any, name: str, zero: bool = False) -> nn.BatchNorm:
    scale = nn.initializers.zeros if zero else nn.initializers.ones
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, scale_init=scale, dtype=dtype, name=name)


class ResNet(nn.Module):
    """Residual network: stem - stages of residual blocks, each with half the sides and twice the channels of the one
    before - mean over the pixels - head. `resnet` makes the published ones.

    Submodules: ``stem``, ``stem_norm``, ``stage_0_block_0``, ..., ``head``. Running means and variances are in the
    collection "batch_stats", which a call with ``train=True`` updates (``mutable=["batch_stats"]``).

    Args:
        num_classes: width N of the output.
        blocks: number of residual blocks in each stage.
        channels: C of the first stage.
        form: "imagenet": stem 7x7 of stride 2 and 3x3 max pooling of stride 2; "cifar": stem 3x3, no pooling.
        patch: s; first each square of s x s pixels becomes one pixel of s² times the channels. Nothing is lost, and
            all that follows costs 1 / s².
        bottleneck, projection, zero_scale: see `ResidualBlock`.
        remat: recompute each block in the backward pass; memory for the blocks' inputs and one block's activations.
        dtype: dtype of the computation; batch statistics are float32 at least. Parameters are float32.

    Returns:
        logits [B, N].

    Raises:
        UserError: the images are not [B, H, W, C], or `patch` does not divide them, or `form` is unknown.

    Example:
        >>> model = ResNet(3, blocks=(1, 1), channels=4, form="cifar")
        >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 8, 8, 1)))
        >>> logits.shape, sorted(variables), variables["params"]["head"]["kernel"].shape
        ((2, 3), ['batch_stats', 'params'], (8, 3))

    Reference:
        He, Zhang, Ren, Sun (2015), "Deep residual learning", arXiv:1512.03385; convolutions normal with variance
        2/fan_out, arXiv:1502.01852. Goyal et al. (2017), arXiv:1706.02677, for `zero_scale`, the head's initialisation
        (normal 0.01) and the stride on the 3x3 convolution of a bottleneck ("v1.5"; the paper has it on the first 1x1).
        Ioffe and Szegedy (2015), arXiv:1502.03167, for batch norm: running <- 0.9 running + 0.1 batch, epsilon 1e-5.
        Deviation from torch: the running variance averages the batch's biased variance, as flax has it; torch and the
        paper take the unbiased one, m / (m - 1) times as large for m = B H W entries a channel.
    """

    num_classes: int = 1000
    blocks: Sequence[int] = (2, 2, 2, 2)
    channels: int = 64
    form: str = "imagenet"
    patch: int = 1
    bottleneck: bool = False
    projection: bool = True
    zero_scale: bool = False
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        if x_BHWC.ndim != 4:
            raise UserError(f"ResNet: images of shape {x_BHWC.shape}; give [batch, height, width, channels]")
        if self.form not in ("imagenet", "cifar"):
            raise UserError(f"ResNet: form={self.form!r}; use 'imagenet' or 'cifar'")
        if self.patch < 1 or x_BHWC.shape[1] % self.patch or x_BHWC.shape[2] % self.patch:
            raise UserError(f"ResNet: patch={self.patch} does not divide images of shape {x_BHWC.shape}")
        x_BHWC = rearrange(x_BHWC, "B (H i) (W j) C -> B H W (i j C)", i=self.patch, j=self.patch)
        side, stride = (7, 2) if self.form == "imagenet" else (3, 1)
        x_BHWC = _conv(self.channels, side, stride, self.dtype, "stem")(x_BHWC)
        x_BHWC = nn.relu(_norm(train, self.dtype, "stem_norm")(x_BHWC))
        if self.form == "imagenet":
            x_BHWC = max_pool_overlapping(x_BHWC, window=3, stride=2, padding=1)
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                x_BHWC = block(
                    self.channels * 2**stage,
                    2 if stage and not index else 1,
                    self.bottleneck,
                    self.projection,
                    self.zero_scale,
                    train,
                    self.dtype,
                    name=f"stage_{stage}_block_{index}",
                )(x_BHWC)
        x_BC = reduce(x_BHWC, "B H W C -> B C", "mean")
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name="head")(x_BC)


def resnet(depth: int, form: str = "imagenet", width: float = 1.0, **options: Any) -> ResNet:
    """A published residual network by its depth.

    | depth | form | blocks | first channels |
    |---|---|---|---|
    | 18, 34 | both | four stages of two-convolution blocks | 64 |
    | 50, 101, 152 | both | four stages of bottlenecks | 64 |
    | 6 n + 2: 20, 32, 44, 56, 110, ... | cifar | three stages of n blocks, shortcuts without parameters | 16 |

    50 and 152 are of the form 6 n + 2 too; they mean the bottleneck networks.

    Args:
        depth: number of layers with weights.
        form: "imagenet" or "cifar", see `ResNet`.
        width: factor on all numbers of channels.
        **options: fields of `ResNet`: num_classes, zero_scale, remat, dtype, ...; they win over the table.

    Returns:
        the module.

    Raises:
        UserError: no such network.

    Example:
        >>> model = resnet(20, form="cifar", num_classes=10)
        >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))["params"]
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        269722

    Reference:
        He, Zhang, Ren, Sun (2015), arXiv:1512.03385, table 1 and section 4.2. Zagoruyko and Komodakis (2016),
        arXiv:1605.07146, for `width`; here it widens the stem too. Deviation: the paper does not say on which side of
        the channels its shortcuts are padded; here after the last.
    """
    if depth in DEPTHS:
        blocks, bottleneck = DEPTHS[depth]
        sizes: dict[str, Any] = {"blocks": blocks, "bottleneck": bottleneck, "channels": round(64 * width)}
    elif form == "cifar" and depth >= 8 and depth % 6 == 2:
        sizes = {"blocks": (depth // 6,) * 3, "channels": round(16 * width), "projection": False}
    else:
        known = ", ".join(map(str, DEPTHS))
        raise UserError(f"resnet: depth={depth} with form={form!r}; use {known}, or 6 n + 2 with form='cifar'")
    return ResNet(**{"form": form, **sizes, **options})
