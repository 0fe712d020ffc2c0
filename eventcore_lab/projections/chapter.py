"""The chapter's `OptimizedUserProjection`, as it stands there: what `projection` and `memory` are the cure for.

It copies every user for every event, so a rebuild takes time with the square of the users; and its checkpoint is the
version of a *stream*, saved when that is a multiple of the interval: over many short streams never, over a few long ones
it jumps back and forth.
"""

from __future__ import annotations

from collections.abc import AsyncIterable

from msgspec.structs import replace

from eventcore_lab.events import StoredEvent
from eventcore_lab.projections.users import UserSummary, users


class OptimizedUserProjection:
    """`saved`: the versions saved as checkpoints, in the order in which they were."""

    def __init__(self, checkpoint_interval: int = 1000) -> None:
        self.users: dict[str, UserSummary] = {}
        self.last_processed_version = 0
        self.checkpoint_interval = checkpoint_interval
        self.saved: list[int] = []

    def apply_incremental(
        self, event: StoredEvent, previous_state: dict[str, UserSummary] | None
    ) -> dict[str, UserSummary]:
        """A new state for every event."""
        state = {user_id: replace(user) for user_id, user in (previous_state or {}).items()}
        users.apply(state, event)
        self.last_processed_version = event.version
        if event.version % self.checkpoint_interval == 0:
            self.saved.append(event.version)
        return state

    async def rebuild_from_stream(self, events: AsyncIterable[StoredEvent]) -> None:
        async for event in events:
            self.users = self.apply_incremental(event, self.users)
