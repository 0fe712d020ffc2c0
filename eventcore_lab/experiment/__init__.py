"""Experiments: what to measure, and measuring it."""

from eventcore_lab.experiment.measuring import Measured, RunBroken, measure
from eventcore_lab.experiment.value import Experiment, with_option
from eventcore_lab.load.places import Executor

__all__ = ["Executor", "Experiment", "Measured", "RunBroken", "measure", "with_option"]
