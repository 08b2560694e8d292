"""Objectives: ``(params, vars, batch, key) -> (loss, Aux(metrics, vars))``, metrics as sums and counts."""

from jaxbig.objective.base import Aux, Metrics, Objective, collected, example_weights, forward, weighted_mean
from jaxbig.objective.classify import classify, cross_entropy
from jaxbig.objective.distill import distill, soft_cross_entropy
from jaxbig.objective.precision import computed_in
from jaxbig.objective.regress import regress

__all__ = [
    "Aux",
    "Metrics",
    "Objective",
    "classify",
    "collected",
    "computed_in",
    "cross_entropy",
    "distill",
    "example_weights",
    "forward",
    "regress",
    "soft_cross_entropy",
    "weighted_mean",
]
