"""What a GGUF file's metadata say of a model, as the ``config.json`` of the same model says it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxbig.errors import UserError
from jaxbig.hub.gguf import Container, read_bytes
from jaxbig.hub.gguf_blocks import plain
from jaxbig.models.rope import Rope, frequencies

# GGUF's architectures that are read, and the class that transformers has for each.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
TURNS = "rope_freqs.weight"  # what Llama 3's slowed frequencies are divided by
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_COUNTS = {
    "num_hidden_layers": "block_count", "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count", "max_position_embeddings": "context_length",
}  # fmt: skip
_ENDS = ("eos", "eot", "eom")  # of a text, of a turn, of a message: a decoder stops at each


def config_of(container: Container) -> dict[str, Any]:
    """The ``config.json`` of a decoder in a GGUF file.

    Args:
        container: what the file holds.

    Returns:
        its fields, for `jaxbig.models.families.family_of`. Numbers that the file has in float32 are the shortest
        decimals that mean them (1e-05); ``tie_word_embeddings`` is whether there is no ``output.weight``.

    Raises:
        UserError: another architecture than llama, qwen2 and qwen3; a field is missing or of another kind; experts,
            heads that are rotated in part, or rotary frequencies that are scaled otherwise than linearly or as in
            Llama 3.
    """
    data, file = container.data, container.file
    kind = data.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise UserError(
            f"{file}: general.architecture is {kind!r:.60}; jaxbig reads {', '.join(ARCHITECTURES)} from GGUF"
        )
    whole = lambda name, *default: _number(container, f"{kind}.{name}", int, *default)  # noqa: E731
    if whole("expert_count", 0):
        raise UserError(f"{file}: {kind}.expert_count is {whole('expert_count')}; jaxbig reads models without experts")
    config: dict[str, Any] = {"model_type": kind, "architectures": [ARCHITECTURES[kind]], "hidden_act": "silu"}
    config |= {ours: whole(theirs) for ours, theirs in _COUNTS.items()}
    heads = config["num_attention_heads"]
    if heads < 1 or config["num_hidden_layers"] < 1:
        raise UserError(f"{file}: {kind}.attention.head_count and block_count have to be at least 1; fetch it again")
    config["num_key_value_heads"] = whole("attention.head_count_kv", heads)
    config["head_dim"] = whole("attention.key_length", config["hidden_size"] // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if whole(name, config["head_dim"]) != config["head_dim"]:
            raise UserError(
                f"{file}: {kind}.{name} is {whole(name)}; jaxbig knows {config['head_dim']}, a head's width"
            )
    config["rms_norm_eps"] = _number(container, f"{kind}.attention.layer_norm_rms_epsilon", float)
    config |= _rope(container, kind, config["head_dim"])
    return config | _tables(container) | _tokens(data)


def _number(container: Container, key: str, kind: type, *default: Any) -> Any:
    """A metadatum that has to be there, or has a default, and is a number of its kind."""
    found = container.data.get(key, *default)
    if found is None:
        raise UserError(f"{container.file}: has no {key}, which its architecture needs; fetch or convert it again")
    if type(found) is not kind or not 0 <= found < 2**31:
        told = "one whole number" if kind is int else "a number"
        raise UserError(f"{container.file}: {key} is {found!r:.60}; it has to be {told} from 0 to 2**31")
    return float(str(np.float32(found))) if kind is float else found


def _rope(container: Container, kind: str, width: int) -> dict[str, Any]:
    """theta, and how frequencies are scaled."""
    theta = _number(container, f"{kind}.rope.freq_base", float, 10_000.0)
    scaling = container.data.get(f"{kind}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise UserError(f"{container.file}: {kind}.rope.scaling.type is {scaling!r:.40}; jaxbig reads none and linear")
    factor = 1.0 if scaling == "none" else _number(container, f"{kind}.rope.scaling.factor", float)
    found: dict[str, Any] = {"rope_theta": theta}
    if factor != 1.0:
        found["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    if TURNS not in container.tensors:
        return found
    if factor != 1.0 or container.tensors[TURNS].format.name != "F32":
        raise UserError(f"{container.file}: {TURNS} is not F32, or beside a linear scaling; fetch or convert it again")
    tensor = container.tensors[TURNS]
    slower_R = plain(read_bytes(tensor), "F32", tensor.shape)
    factor = float(slower_R.max())
    rope = Rope(theta, "llama3", factor, 8192, 1.0, 4.0)
    plainly = slower_R.shape == (width // 2,) and np.isfinite(slower_R).all() and factor >= 1
    if not plainly or not np.allclose(frequencies(Rope(theta), width) / frequencies(rope, width), slower_R, rtol=1e-4):
        raise UserError(f"{container.file}: {TURNS} is not what Llama 3.1, 3.2 and 3.3 have; jaxbig knows no other")
    return found | {"rope_scaling": {"rope_type": "llama3", "factor": factor, **LLAMA3}}


def _tables(container: Container) -> dict[str, Any]:
    """What the tensors say: the vocabulary, whether the head is tied, and which products have a bias."""
    table = container.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise UserError(f"{container.file}: has no token_embd.weight, the embedding; fetch or convert it again")
    return {
        "vocab_size": table.shape[0],
        "tie_word_embeddings": "output.weight" not in container.tensors,
        "attention_bias": "blk.0.attn_output.bias" in container.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in container.tensors,
    }


def _tokens(data: Mapping[str, Any]) -> dict[str, Any]:
    """The ids that begin and end a text."""
    ids = {name: data.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", *_ENDS)}
    ends = list(dict.fromkeys(ids[name] for name in _ENDS if type(ids[name]) is int))
    found = {"bos_token_id": ids["bos"]} if type(ids["bos"]) is int else {}
    return found | ({"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {})
