"""Whisper: speech as log-mel spectrograms in, tokens of a text out.

Legend of the shape suffixes: B batch, N frames, F mel filters, S states of the encoder, T tokens, D width, V
vocabulary, C classes, L layers.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxbig.errors import UserError
from jaxbig.models.cache import Cache
from jaxbig.models.whisper_stacks import Kind, Rates, Sizes, WhisperDecoder, WhisperEncoder

TASKS = ("seq2seq_lm", "audio_classification", "features")


class Whisper(nn.Module):
    """An encoder of log-mel spectrograms, and a decoder that reads its states.

    Submodules and parameters: ``encoder`` with ``conv_0``, ``conv_1``, ``positions`` [S, D], ``layer_0`` ... (scanned:
    ``layers``, see `Encoder`) and ``norm``; ``decoder`` with ``embed``, ``positions``, ``layer_0`` ... and ``norm``;
    ``head`` where it is not tied. For "audio_classification" there is no decoder: ``projector`` and ``head``.

    Args:
        vocabulary, width: V and D, which is even.
        layers, heads, hidden, length: of the decoder: L, heads, of which D is a multiple, width of the hidden layer,
            and number of learned positions.
        encoder_layers, encoder_heads, encoder_hidden, encoder_length: of the encoder; it takes twice as many frames as
            it has positions.
        mels: F.
        activation: of the hidden layers.
        tied: the head of "seq2seq_lm" is the decoder's embedding.
        task: "seq2seq_lm", "audio_classification" or "features".
        num_classes: C.
        start: id of the token that texts begin with.
        projector: width between the states and the head of "audio_classification".
        dropout, attention_dropout, activation_dropout: rates on the embeddings and on what each part of a layer adds,
            on the attention's shares, and on the hidden layers; used with ``train=True`` (need a "dropout" key).
        std: of the initialised kernels and tables.
        scan_layers, remat: see `Encoder`.
        dtype: of the computation; None: that of parameters. Statistics of norms and softmaxes are float32 at least.

    Called as ``apply({"params": params}, x_BNF, tokens_BT, positions=None, segments=None, train=False)``: spectrograms,
    see `whisper_log_mel`, and the tokens so far (teacher forcing: the text moved by one); `positions` and `segments` of
    tokens as in `Llama`. "audio_classification" takes spectrograms alone.

    To write token by token, ``apply(..., method="encode")``, ``"memory"`` and ``"decode"``, see there.

    Returns:
        logits, float32 at least: [B, T, V], or [B, C] for "audio_classification"; the decoder's states [B, T, D] for
        "features".

    Raises:
        UserError: more frames or tokens than positions, spectrograms of another shape, heads that do not divide the
            width, an unknown task, or tokens that are missing or not wanted.

    Example:
        >>> model = Whisper(11, 8, 2, 2, 16, 6, encoder_layers=1, encoder_heads=2, encoder_hidden=16, encoder_length=5)
        >>> x, tokens = jnp.ones((1, 10, 80)), jnp.array([[1, 2, 3]])
        >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x, tokens)
        >>> variables["params"]["decoder"]["layer_1"]["cross"]["key"]["kernel"].shape, logits.shape
        ((8, 8), (1, 3, 11))

    Reference:
        Radford et al. (2022), "Robust speech recognition via large-scale weak supervision", arXiv:2212.04356.
        Deviations from transformers: fewer frames than twice the encoder's positions are taken (published models heard
        30 seconds always, padded); the encoder's positions are a leaf through which no gradient flows (weight decay
        would still shrink it: freeze it); float16 is not clipped between layers; there is no layer drop and no
        SpecAugment (`jaxbig.data` masks spectrograms), and no weighted sum of layers.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    hidden: int
    length: int
    encoder_layers: int
    encoder_heads: int
    encoder_hidden: int
    encoder_length: int = 1500
    mels: int = 80
    activation: str = "gelu"
    tied: bool = True
    task: str = "seq2seq_lm"
    num_classes: int = 2
    start: int = 0
    projector: int = 256
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    std: float = 0.02
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = None

    @property
    def decoder_layers(self) -> int:
        return self.layers

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def setup(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"whisper: task={self.task!r}; use one of {', '.join(TASKS)}")
        for heads in (self.heads, self.encoder_heads):
            if self.width % heads:
                raise UserError(f"whisper: width {self.width} is not a multiple of {heads} heads; change one of them")
        rates = Rates(self.dropout, self.attention_dropout, self.activation_dropout)
        kind = Kind(self.width, self.activation, self.std, rates, self.scan_layers, self.remat, self.dtype)
        sizes = Sizes(self.encoder_layers, self.encoder_heads, self.encoder_hidden, self.encoder_length)
        init = nn.initializers.normal(self.std)
        self.encoder = WhisperEncoder(sizes, kind)
        if self.task == "audio_classification":
            self.project = nn.Dense(self.projector, dtype=self.dtype, kernel_init=init, name="projector")
            self.head = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=init)
            return
        self.decoder = WhisperDecoder(self.vocabulary, Sizes(self.layers, self.heads, self.hidden, self.length), kind)
        if self.task == "seq2seq_lm" and not self.tied:
            self.head = nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype, kernel_init=init)

    def __call__(
        self, x_BNF: jax.Array, tokens_BT: Any = None, positions: Any = None, segments: Any = None, train: bool = False
    ) -> jax.Array:
        if (tokens_BT is None) != (self.task == "audio_classification"):
            told = "takes no tokens" if tokens_BT is not None else "needs the tokens so far, too"
            raise UserError(f"whisper: the task {self.task!r} {told}")
        states_BSD = self.encode(x_BNF, train=train)
        if self.task == "audio_classification":
            return _wide(self.head(self.project(states_BSD).mean(axis=1)))
        return self.decode(tokens_BT, states_BSD, positions, segments, train=train)

    def encode(self, x_BNF: jax.Array, segments: Any = None, train: bool = False) -> jax.Array:
        """The encoder's states.

        Args:
            x_BNF: log-mel spectrograms of up to 2 S frames.
            segments: None; it stands where other encoders are told of padding. A Whisper hears all frames.
            train: whether dropout is on.

        Returns:
            [B, ceil(N / 2), D].
        """
        _refuse(segments)
        if x_BNF.ndim != 3 or x_BNF.shape[-1] != self.mels or not 1 <= x_BNF.shape[1] <= 2 * self.encoder_length:
            raise UserError(
                f"whisper: spectrograms of shape {x_BNF.shape}; give [batch, frames, {self.mels}] with at most "
                f"{2 * self.encoder_length} frames, as whisper_log_mel does"
            )
        return self.encoder(x_BNF, train)

    def memory(self, states_BSD: jax.Array, segments: Any = None) -> Any:
        """Keys and values of the encoder's states, for all layers of the decoder: what `decode` needs of them.

        Args:
            states_BSD: what `encode` returns.
            segments: None, as of `encode`.

        Returns:
            of unrolled layers a tuple of L `KeysValues`, of scanned ones one with a first axis of length L.
        """
        _refuse(segments)
        return self.decoder(None, states_BSD)

    def decode(
        self, tokens_BT: jax.Array, source: Any, positions: Any = None, segments: Any = None,
        cache: Cache | None = None, logits_at: Any = None, train: bool = False,
    ) -> Any:  # fmt: skip
        """The text's next tokens, given what was heard.

        Args:
            tokens_BT: tokens, new ones alone where there is a cache.
            source: the encoder's states, or their `memory`, which is made once and serves all tokens.
            positions, segments, cache: as in `Llama`; `empty_cache` makes one.
            logits_at: int [B]: the token of each row whose logits are wanted.

        Returns:
            what a call returns ([B, V] with `logits_at`); with a cache a pair of it and the cache.
        """
        x_BTD, cache, table_VD = self.decoder(tokens_BT, source, positions, segments, cache, train)
        if logits_at is not None:
            x_BTD = jnp.take_along_axis(x_BTD, jnp.asarray(logits_at)[:, None, None], axis=1)[:, 0]
        if self.task == "features":
            found = x_BTD
        elif self.tied:
            # `attend` multiplies with a transposed table, for which XLA:CPU has a slower loop at one row.
            x_BTD, table_VD = promote_dtype(x_BTD, table_VD, dtype=self.dtype)
            found = _wide(jnp.einsum("...D,VD->...V", x_BTD, table_VD))
        else:
            found = _wide(self.head(x_BTD))
        return found if cache is None else (found, cache)


def _refuse(segments: Any) -> None:
    if segments is not None:
        raise UserError("whisper: the encoder hears all frames, silence too; give it no segments")


def _wide(logits: jax.Array) -> jax.Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
