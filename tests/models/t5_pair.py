"""T5 of transformers with parameters none of which is its initial value, and ours with the same."""

import random
import warnings

from models.carry import carry

from jaxbig.models.families import family_of

V, PAD = 37, 0
CLASSES = {"seq2seq_lm": "ForConditionalGeneration", "features": "Model", "encoder": "EncoderModel"}


def config(number):
    """The fields of random config `number`."""
    rng = random.Random(f"t5 {number}")
    buckets = rng.choice([4, 6, 8, 13, 32])
    return {
        "vocab_size": V, "d_model": rng.choice([5, 8, 11]), "d_kv": rng.choice([3, 4, 7]), "d_ff": rng.choice([6, 13]),
        "num_layers": rng.choice([1, 2, 3]), "num_decoder_layers": rng.choice([None, 1, 2, 3]),
        "num_heads": rng.choice([1, 2, 3]), "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": rng.choice([buckets + 1, 20, 128]),
        "layer_norm_epsilon": rng.choice([1e-6, 1e-3]), "pad_token_id": PAD, "eos_token_id": 1,
        "feed_forward_proj": ["relu", "gated-gelu", "gated-silu", "gelu"][number % 4],
        "tie_word_embeddings": number % 3 != 1,
    }  # fmt: skip


def theirs(torch, fields, task="seq2seq_lm", dtype="float64", kind="T5", louder=1.0):
    """Their model, its layers' kernels times `louder`, and its config as a dictionary.

    One that is not tied has a head of its own, as published files do: transformers 5 ties every T5 that is made anew,
    whatever its config says."""
    import transformers

    cls = getattr(transformers, kind + CLASSES[task])
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(transformers, f"{kind}Config")(**fields)
        made._attn_implementation = "eager"
        model = cls(made)
    if task == "seq2seq_lm" and fields["tie_word_embeddings"] is False:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
    model = model.to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
            parameter.mul_(louder if ".block." in name and "norm" not in name else 1.0)
    told = {name: value for name, value in fields.items() if value is not None}
    return model, told | {"model_type": kind.lower(), "architectures": [cls.__name__]}


COPIES = r"(encoder|decoder)\.embed_tokens\.weight"


def pair(torch, fields, task="seq2seq_lm", dtype="float64", kind="T5", louder=1.0, **options):
    """(their model, our family, module and parameters)."""
    model, told = theirs(torch, fields, task, dtype, kind, louder)
    family = family_of(told)
    assert family.architectures[told["architectures"][0]] == task
    module = family.module(told, task, **options)
    return model, family, module, carry(module, family, model.state_dict(), dtype=dtype)
