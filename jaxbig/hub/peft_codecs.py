"""The methods of PEFT that travel, one entry each; a new method is one more.

| here | PEFT's type | does not travel |
|---|---|---|
| `lora` (`stabilised`) | LORA (``use_rslora``) | variants, ``bias``, tokens, inits that change the base |
| `dora` | LORA with ``use_dora`` | a tied table |
| `adalora` | ADALORA | the averages; what P and Q of a triplet were that was taken away |
| `vera` | VERA | an adapter without its matrices (``save_projection=False``); convolutions |
| `loha` | LOHA | ``use_effective_conv2d`` of windows larger than 1 |
| `lokr` | LOKR | ``decompose_both`` where it splits the first factor; convolutions |
| `fourierft` | FOURIERFT | places that PEFT does not draw from the seed (older checkpoints) |
| `shira` | SHIRA | another `scale` than 1 |
| `oft` | OFT | COFT, ``block_share``; ``terms=3``, which PEFT has not; convolutions, tables |
| `boft` | BOFT | of A what is symmetric, which turns nothing; several sides of blocks; convolutions |
| `hra` | HRA | ``apply_GS``; an odd rank |
| `ia3` | IA3 | outputs of a module with a bias without `biases=True`, inputs of a convolution |
| `ln_tuning` | LN_TUNING | |
| `trainable_tokens` | TRAINABLE_TOKENS | a table that is looked up along its last axis |
| `prompt` | PROMPT_TUNING, P_TUNING | P-tuning's network, but the vectors that it makes; encoder-decoders |
| `prefix` | PREFIX_TUNING | the network; models without a table of positions; what stands for queries |
| `full`, beside any of these | ``modules_to_save`` | kernels of transformers' ``Conv1D`` |

Dropout other than LoRA's is none of these methods' here: it acts in training alone, and what is read computes the same.
`pissa`, `olora` leave as `lora` (`jaxbig.plain.as_lora`); `bitfit` and `bottleneck` PEFT has not.
"""

from collections.abc import Mapping
from typing import Any

from jaxbig.errors import UsageError, UserError
from jaxbig.hub.peft_codec import refused
from jaxbig.hub.peft_leaves import LN_TUNING, TRAINABLE_TOKENS
from jaxbig.hub.peft_lowrank import ADALORA, DORA, LORA, VERA
from jaxbig.hub.peft_prompts import Prefixes, Prompts
from jaxbig.hub.peft_turns import BOFT, HRA, IA3, OFT
from jaxbig.hub.peft_updates import FOURIERFT, LOHA, LOKR, SHIRA

# Of two methods with one type in PEFT the one with marks comes first.
CODECS = (
    DORA, LORA, ADALORA, VERA, LOHA, LOKR, FOURIERFT, SHIRA, OFT, BOFT, HRA, IA3, LN_TUNING, TRAINABLE_TOKENS,
    Prompts(), Prefixes(),
)  # fmt: skip


def of_config(folder: Any, config: Mapping[str, Any]) -> Any:
    """The codec of an adapter that is read.

    Raises:
        UserError: no method here is PEFT's, or the config says what it cannot do.

    Example:
        >>> of_config("f", {"peft_type": "LORA", "use_dora": True}).technique
        'dora'
    """
    name = config.get("peft_type")
    for codec in CODECS:
        if name in codec.peft_types and all(config.get(key) == value for key, value in codec.marks.items()):
            odd = refused(codec, config)
            if odd:
                raise UserError(f"{folder}: its config says {odd}, which {codec.technique} has not; it cannot be read")
            return codec
    known = sorted({name for codec in CODECS for name in codec.peft_types})
    raise UserError(f"{folder}: holds a {name} adapter; read_peft reads {', '.join(known)}")


def of_techniques(names: list[str]) -> Any:
    """The codec of the techniques of a transform that is written.

    Raises:
        UsageError: PEFT has none of them, or its files hold them only one by one.

    Example:
        >>> of_techniques(["ia3", "ia3"]).peft_types
        ('IA3',)
    """
    known = {codec.technique: codec for codec in CODECS}
    odd = [name for name in names if name not in known]
    if not names:
        raise UsageError(
            "write_peft: full alone is no adapter; PEFT's files hold modules that are saved whole beside one"
        )
    if odd:
        raise UsageError(
            f"write_peft: PEFT has no {odd[0]}; its files hold {', '.join(sorted(known))}, and full beside one"
        )
    if len(set(names)) > 1:
        raise UsageError(f"write_peft: PEFT's files hold one method, and these are {', '.join(sorted(set(names)))}")
    return known[names[0]]
