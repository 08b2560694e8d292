"""Objectives: ``(params, vars, batch, key) -> (loss, Aux(metrics, vars))``, metrics as sums and counts."""

from jaxbig.objective.base import (
    Aux,
    Inputs,
    Metrics,
    Objective,
    collected,
    example_weights,
    forward,
    picked,
    weighted_mean,
)
from jaxbig.objective.classify import classify, cross_entropy
from jaxbig.objective.contrast import contrast, info_nce, pairwise_sigmoid
from jaxbig.objective.distill import distill, soft_cross_entropy
from jaxbig.objective.language import next_token
from jaxbig.objective.precision import computed_in
from jaxbig.objective.prefer import answer_log_p, prefer
from jaxbig.objective.regress import regress

__all__ = [
    "Aux",
    "Inputs",
    "Metrics",
    "Objective",
    "answer_log_p",
    "classify",
    "collected",
    "computed_in",
    "contrast",
    "cross_entropy",
    "distill",
    "example_weights",
    "forward",
    "info_nce",
    "next_token",
    "pairwise_sigmoid",
    "picked",
    "prefer",
    "regress",
    "soft_cross_entropy",
    "weighted_mean",
]
