"""What is asked of a store. Importing this registers every workload."""

from eventcore_lab.load.workloads import appends as appends
from eventcore_lab.load.workloads import commands as commands
from eventcore_lab.load.workloads import everything as everything
from eventcore_lab.load.workloads import lookups as lookups
from eventcore_lab.load.workloads import many as many
from eventcore_lab.load.workloads import reads as reads
from eventcore_lab.load.workloads import trace as trace
from eventcore_lab.load.workloads.appends import WriteEvents
from eventcore_lab.load.workloads.workload import (
    EVENTS_PER_APPEND_MAX,
    REJECTED,
    Performer,
    Workload,
    mixed,
    workloads,
)

__all__ = ["EVENTS_PER_APPEND_MAX", "REJECTED", "Performer", "Workload", "WriteEvents", "mixed", "workloads"]
