"""Folders of small published models, written by the safetensors package with what transformers would call the tensors.

Nothing here is jaxbig's, so that what jaxbig reads and writes is compared with something else.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 19, "hidden_size": 8,
    "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "dtype": "float32",
}  # fmt: skip


def shapes(config):
    """Every tensor of a Llama, by transformers' names."""
    wide, hidden, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, kv = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    layer = {
        "self_attn.q_proj": (q, wide), "self_attn.k_proj": (kv, wide), "self_attn.v_proj": (kv, wide),
        "self_attn.o_proj": (wide, q), "mlp.gate_proj": (hidden, wide), "mlp.up_proj": (hidden, wide),
        "mlp.down_proj": (wide, hidden), "input_layernorm": (wide,), "post_attention_layernorm": (wide,),
    }  # fmt: skip
    found = {"model.embed_tokens.weight": (vocabulary, wide)}
    for i in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    found["model.norm.weight"] = (wide,)
    return found | ({} if config["tie_word_embeddings"] else {"lm_head.weight": (vocabulary, wide)})


def tensors(config=CONFIG, dtype=np.float32):
    """Random ones."""
    random = np.random.default_rng(0)
    return {name: (random.normal(size=shape) * 0.3).astype(dtype) for name, shape in shapes(config).items()}


def write(folder, arrays=None, config=CONFIG, parts=1):
    """The folder, its tensors in one file or in several with an index."""
    folder, arrays = Path(folder), tensors(config) if arrays is None else arrays
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if parts == 1:
        save_file(arrays, folder / "model.safetensors")
        return folder
    names, table = list(arrays), {}
    for i in range(parts):
        file = f"model-{i + 1:05d}-of-{parts:05d}.safetensors"
        save_file({name: arrays[name] for name in names[i::parts]}, folder / file)
        table |= dict.fromkeys(names[i::parts], file)
    index = {"metadata": {"total_size": sum(a.nbytes for a in arrays.values())}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
