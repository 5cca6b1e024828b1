r"""Bounds: what theory says about a run, each a function of its setting, all in one register.

One function a theorem, grouped by method: :mod:`~quadlab.bounds.lemma` (any method with the lemma's step),
:mod:`~quadlab.bounds.gd`, :mod:`~quadlab.bounds.signsgd`, :mod:`~quadlab.bounds.adam`,
:mod:`~quadlab.bounds.steepest`, :mod:`~quadlab.bounds.adam_mini`; under gradient noise
:mod:`~quadlab.bounds.stochastic`. The register
is :mod:`~quadlab.bounds.registry`; what a bound sees, and the conversion between stopping tests, is
:mod:`~quadlab.bounds.setting`; the rounding rules are :mod:`~quadlab.bounds.verdict`. A bound of one's own is
registered by the same decorator, :func:`bound`, and is then evaluated by :func:`quadlab.compare.compare` like
the others.
"""

from __future__ import annotations

from quadlab.bounds import adam, adam_mini, gd, lemma, signsgd, steepest, stochastic, verdict
from quadlab.bounds.evaluation import evaluate, requirements
from quadlab.bounds.registry import (
    Bound,
    BoundTable,
    Evaluation,
    bound,
    bounds,
    temporary_bounds,
    unregister,
)
from quadlab.bounds.setting import Assumption, MissingStatisticError, Setting, assume

__all__ = [
    "Assumption",
    "Bound",
    "BoundTable",
    "Evaluation",
    "MissingStatisticError",
    "Setting",
    "adam",
    "adam_mini",
    "assume",
    "bound",
    "bounds",
    "evaluate",
    "gd",
    "lemma",
    "requirements",
    "signsgd",
    "steepest",
    "stochastic",
    "temporary_bounds",
    "unregister",
    "verdict",
]
