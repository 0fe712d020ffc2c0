"""What an application puts on a store: commands, and executors that carry them out."""

from eventcore_lab.commands.bank import OpenAccount, Transfer
from eventcore_lab.commands.command import Command, CommandRejected, Executed, Fold, State
from eventcore_lab.commands.executor import Direct, Executor, RetryPolicy, execute_all
from eventcore_lab.commands.executors import batching, cached, direct, executors, parallel, snapshots
from eventcore_lab.commands.inventory import ReserveStock
from eventcore_lab.commands.users import CreateUser, UpdateProfile

__all__ = [
    "Command",
    "CommandRejected",
    "CreateUser",
    "Direct",
    "Executed",
    "Executor",
    "Fold",
    "OpenAccount",
    "ReserveStock",
    "RetryPolicy",
    "State",
    "Transfer",
    "UpdateProfile",
    "batching",
    "cached",
    "direct",
    "execute_all",
    "executors",
    "parallel",
    "snapshots",
]
