"""Objectives: ``(params, vars, batch, key) -> (loss, Aux(metrics, vars))``, metrics as sums and counts."""

from jaxbig.objective.base import Aux, Metrics, Objective, example_weights, forward, weighted_mean
from jaxbig.objective.classify import classify, cross_entropy
from jaxbig.objective.distill import distill, soft_cross_entropy

__all__ = [
    "Aux",
    "Metrics",
    "Objective",
    "classify",
    "cross_entropy",
    "distill",
    "example_weights",
    "forward",
    "soft_cross_entropy",
    "weighted_mean",
]
