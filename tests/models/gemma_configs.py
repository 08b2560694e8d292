"""Random small configs of the Gemma line, as `test_decoders.py` draws those of the other decoders."""

PLAIN = {"rope_type": "default", "rope_theta": 700.0}


def gemma_fields(kind, rng, ropes):
    """The fields of one config beside those that all decoders share.

    Args:
        kind: "gemma", "gemma2" or "gemma3_text".
        rng: a `random.Random`.
        ropes: ``rng -> rope_parameters``.
    """
    heads, groups = rng.choice([(4, 2), (4, 1), (2, 2), (6, 3), (3, 1), (1, 1)])
    layers = rng.choice([2, 3, 4])
    found = {
        "hidden_size": heads * rng.choice([3, 5, 6]), "intermediate_size": rng.choice([5, 12, 17]),
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
        "head_dim": rng.choice([4, 6, 8]), "rms_norm_eps": rng.choice([1e-6, 1e-3]),
        "tie_word_embeddings": rng.random() < 0.7, "max_position_embeddings": rng.choice([8, 64]),
        "attention_bias": rng.random() < 0.3, "rope_parameters": ropes(rng),
    }  # fmt: skip
    if kind == "gemma":
        return found | {"hidden_act": rng.choice(["gelu", "gelu_pytorch_tanh", "silu"])}
    found |= {
        "hidden_activation": rng.choice(["gelu_pytorch_tanh", "silu"]), "sliding_window": rng.choice([1, 3, 5]),
        "query_pre_attn_scalar": rng.choice([2, 7, 24]), "final_logit_softcapping": rng.choice([None, 1.5, 20.0]),
    }  # fmt: skip
    if rng.random() < 0.5:
        found["layer_types"] = [rng.choice(["sliding_attention", "full_attention"]) for _ in range(layers)]
    if kind == "gemma2":
        return found | {"attn_logit_softcapping": rng.choice([None, 0.8, 5.0])}
    local = rng.choice([PLAIN, PLAIN, {"rope_type": "linear", "rope_theta": 90.0, "factor": 2.0}])
    found["rope_parameters"] = {"full_attention": found["rope_parameters"], "sliding_attention": dict(local)}
    if "layer_types" not in found:
        found["sliding_window_pattern"] = rng.choice([2, 3])
    return found
