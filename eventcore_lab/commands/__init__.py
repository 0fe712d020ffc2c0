"""What an application puts on a store: commands, and executors that carry them out."""

from eventcore_lab.commands.command import Command, CommandRejected, Executed
from eventcore_lab.commands.executor import Direct, Executor, RetryPolicy
from eventcore_lab.commands.users import CreateUser

__all__ = ["Command", "CommandRejected", "CreateUser", "Direct", "Executed", "Executor", "RetryPolicy"]
