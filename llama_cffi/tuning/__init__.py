"""Tune a model on this machine: measure settings against the defaults, and keep faster ones."""

from __future__ import annotations

from ..binding.tuned import TunedSettings
from .result import TuneResult, TuneStep
from .tuner import tune

__all__ = ["TuneResult", "TuneStep", "TunedSettings", "tune"]
