"""The published families that are a `Bert`: BERT (MiniLM is one), RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT.

They differ in their files' names, in where positions begin, in the pooler, and in what dropout falls on.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.models.bert import TASKS, Bert
from jaxbig.models.family import Family, Tensor, field, refuse


def _task(config: Mapping[str, Any], task: str, num_classes: int | None) -> dict[str, Any]:
    if task not in TASKS:
        raise UserError(f"{config.get('model_type')}: no head for the task {task!r}; there are {', '.join(TASKS)}")
    named = config.get("num_labels") or len(config.get("id2label") or ()) or 2
    count = 2 if task == "question_answering" else named if num_classes is None else num_classes
    return {"task": task, "num_classes": count}


def _bert(config: Mapping[str, Any], task: str, **options: Any) -> Bert:
    """The module that a ``config.json`` describes; fields that it leaves out are transformers' defaults."""
    refuse(config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    roberta = config.get("model_type") in ("roberta", "xlm-roberta", "camembert")
    pad = config.get("pad_token_id", 1 if roberta else 0)
    if roberta and pad is None:
        raise UserError(f"config.json: pad_token_id is null; positions of {config['model_type']} begin after it")
    dropout = config.get("hidden_dropout_prob", 0.1)
    given = config.get("classifier_dropout")
    rate = dropout if given is None else given
    before = {"sequence_classification": rate, "token_classification": rate}.get(task, 0.0)
    hidden_act = config.get("hidden_act", "gelu")
    return Bert(
        vocabulary=field(config, "vocab_size"),
        width=field(config, "hidden_size"),
        layers=field(config, "num_hidden_layers"),
        heads=field(config, "num_attention_heads"),
        hidden=field(config, "intermediate_size"),
        length=field(config, "max_position_embeddings"),
        types=config.get("type_vocab_size", 2),
        offset=pad + 1 if roberta else 0,
        activation=hidden_act,
        head_activation="gelu" if roberta else hidden_act,
        eps=config.get("layer_norm_eps", 1e-12),
        tied=config.get("tie_word_embeddings", True),
        attention_dropout=config.get("attention_probs_dropout_prob", 0.1),
        out_dropout=dropout,
        dropout=dropout,
        pool_dropout=before if roberta else 0.0,
        head_dropout=before,
        std=config.get("initializer_range", 0.02),
        **_task(config, task, options.pop("num_classes", None)),
        **options,
    )


def _distilbert(config: Mapping[str, Any], task: str, **options: Any) -> Bert:
    if options.get("pooler"):
        raise UserError("distilbert: it has no pooler; leave pooler=True out")
    dropout = config.get("dropout", 0.1)
    rates = {
        "sequence_classification": config.get("seq_classif_dropout", 0.2),
        "question_answering": config.get("qa_dropout", 0.1),
    }
    return Bert(
        vocabulary=field(config, "vocab_size"),
        width=field(config, "dim"),
        layers=field(config, "n_layers"),
        heads=field(config, "n_heads"),
        hidden=field(config, "hidden_dim"),
        length=field(config, "max_position_embeddings"),
        types=0,
        activation=config.get("activation", "gelu"),
        head_activation=config.get("activation", "gelu"),
        pool_activation="relu",
        tied=config.get("tie_word_embeddings", True),
        attention_dropout=config.get("attention_dropout", 0.1),
        dropout=dropout,
        head_dropout=rates.get(task, dropout),
        std=config.get("initializer_range", 0.02),
        **_task(config, task, options.pop("num_classes", None)),
        **options,
    )


# Ours -> theirs, layer by layer of the module; what ends in "norm" has a scale and a bias, tables one array, the others
# a kernel and a bias.
TABLES = ("embed", "positions", "types")
BERT_BODY = {
    "embed": "{prefix}.embeddings.word_embeddings",
    "positions": "{prefix}.embeddings.position_embeddings",
    "types": "{prefix}.embeddings.token_type_embeddings",
    "embed_norm": "{prefix}.embeddings.LayerNorm",
} | {
    f"layer_{{}}/{ours}": f"{{prefix}}.encoder.layer.{{}}.{theirs}"
    for ours, theirs in {
        "attention/query": "attention.self.query",
        "attention/key": "attention.self.key",
        "attention/value": "attention.self.value",
        "attention/out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "mlp/up": "intermediate.dense",
        "mlp/down": "output.dense",
        "mlp_norm": "output.LayerNorm",
    }.items()
}
DISTILBERT_BODY = {name: BERT_BODY[name] for name in ("embed", "positions", "embed_norm")} | {
    f"layer_{{}}/{ours}": f"{{prefix}}.transformer.layer.{{}}.{theirs}"
    for ours, theirs in {
        "attention/query": "attention.q_lin",
        "attention/key": "attention.k_lin",
        "attention/value": "attention.v_lin",
        "attention/out": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "mlp/up": "ffn.lin1",
        "mlp/down": "ffn.lin2",
        "mlp_norm": "output_layer_norm",
    }.items()
}
CLASSIFIERS = {"token_classification": {"head": "classifier"}, "question_answering": {"head": "qa_outputs"}}
HEADS = {
    "bert": CLASSIFIERS | {
        "masked_lm": {
            "transform": "cls.predictions.transform.dense",
            "transform_norm": "cls.predictions.transform.LayerNorm",
            "head": "cls.predictions.decoder",
            "head_bias": "cls.predictions.bias",
        },
        "sequence_classification": {"pooler": "{prefix}.pooler.dense", "head": "classifier"},
        "features": {"pooler": "{prefix}.pooler.dense"},
    },
    "roberta": CLASSIFIERS | {
        "masked_lm": {
            "transform": "lm_head.dense",
            "transform_norm": "lm_head.layer_norm",
            "head": "lm_head.decoder",
            "head_bias": "lm_head.bias",
        },
        "sequence_classification": {"pooler": "classifier.dense", "head": "classifier.out_proj"},
        "features": {"pooler": "{prefix}.pooler.dense"},
    },
    "distilbert": CLASSIFIERS | {
        "masked_lm": {
            "transform": "vocab_transform",
            "transform_norm": "vocab_layer_norm",
            "head": "vocab_projector",
            "head_bias": "vocab_projector.bias",
        },
        "sequence_classification": {"pooler": "pre_classifier", "head": "classifier"},
    },
}  # fmt: skip


def _tensors(
    module: Bert, body: Mapping[str, str], heads: Mapping[str, Mapping[str, str]], prefix: str
) -> list[Tensor]:
    """Every tensor of a module of this task."""
    found, headless = [], module.task == "features" and not module.pooler
    its = {} if headless else heads.get(module.task, {})
    for ours, theirs in {**body, **its}.items():
        theirs = theirs.replace("{prefix}", prefix)
        if ours in TABLES:
            found += [Tensor(f"{ours}/embedding", f"{theirs}.weight")] * (ours != "types" or module.types > 0)
        elif ours == "head_bias":
            # transformers 5 adds an untied head's own bias; the tied one is in its files too, and counts for nothing.
            found += [Tensor(ours, theirs if module.tied else f"{its['head']}.bias")]
        elif ours.endswith("norm"):
            found += [Tensor(f"{ours}/scale", f"{theirs}.weight"), Tensor(f"{ours}/bias", f"{theirs}.bias")]
        elif ours == "head" and module.task == "masked_lm":
            found += [Tensor("head/kernel", f"{theirs}.weight", "matrix")] * (not module.tied)
        else:
            found += [Tensor(f"{ours}/kernel", f"{theirs}.weight", "matrix"), Tensor(f"{ours}/bias", f"{theirs}.bias")]
    return found


def _example(module: Bert) -> tuple[Any, ...]:
    return (jax.ShapeDtypeStruct((1, min(8, module.length - module.offset)), jnp.int32),)


def _family(kind: str, classes: str, heads: str, prefix: str, module: Callable[..., Bert] = _bert) -> Family:
    suffixes = {
        "ForMaskedLM": "masked_lm",
        "ForSequenceClassification": "sequence_classification",
        "ForTokenClassification": "token_classification",
        "ForQuestionAnswering": "question_answering",
        "Model": "features",
    }
    body = DISTILBERT_BODY if kind == "distilbert" else BERT_BODY
    tensors = partial(_tensors, body=body, heads=HEADS[heads], prefix=prefix)
    return Family(kind, {classes + end: task for end, task in suffixes.items()}, module, tensors, prefix, _example)


BERT = _family("bert", "Bert", "bert", "bert")
ROBERTA = _family("roberta", "Roberta", "roberta", "roberta")
XLM_ROBERTA = _family("xlm-roberta", "XLMRoberta", "roberta", "roberta")
CAMEMBERT = _family("camembert", "Camembert", "roberta", "roberta")
DISTILBERT = _family("distilbert", "DistilBert", "distilbert", "distilbert", _distilbert)
