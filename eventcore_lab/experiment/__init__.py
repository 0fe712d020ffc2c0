"""Experiments: what to measure, and measuring it."""

from eventcore_lab.experiment.measuring import Measured, RunBroken, measure
from eventcore_lab.experiment.value import Experiment, with_option

__all__ = ["Experiment", "Measured", "RunBroken", "measure", "with_option"]
