"""The chapter's read model of users: who they are, when they registered, and when they last changed their profile."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from eventcore_lab.commands.users import USER_EVENTS, UserProfileUpdated, UserRegistered
from eventcore_lab.events import StoredEvent
from eventcore_lab.projections.projection import Projection

Row = tuple[str, str | None, str | None, int | None, int | None]
"""A user as a read model has it: id, email, display name, created and updated in microseconds since 1970."""


class UserSummary(Struct, gc=False):
    """A user, changed in place. The times are those at which the store recorded the events, microseconds since 1970."""

    id: str
    email: str
    display_name: str
    created_at_us: int
    updated_at_us: int

    @property
    def row(self) -> Row:
        return self.id, self.email, self.display_name, self.created_at_us, self.updated_at_us


Said = UserRegistered | UserProfileUpdated


def _change(users: dict[str, UserSummary], event: StoredEvent, said: Said) -> None:
    if isinstance(said, UserRegistered):
        users[said.user_id] = _registered(event, said)
    elif (user := users.get(said.user_id)) is not None:  # a profile of nobody is nobody's
        user.display_name, user.updated_at_us = said.profile.display_name, event.recorded_at_us


def _registered(event: StoredEvent, said: UserRegistered) -> UserSummary:
    at_us = event.recorded_at_us
    return UserSummary(said.user_id, said.email, said.profile.display_name, at_us, at_us)


users: Projection[dict[str, UserSummary]] = Projection("users", USER_EVENTS, dict, _change, dict[str, UserSummary])
"""user id → summary."""


class Changes(Struct):
    """What a page of events comes to, for somebody who has the users of before elsewhere: `registered` are whole users,
    `updated` are (display name, updated_at_us) of users who were registered before the page, nobody is in both, and `count`
    is how many events had something to say of them."""

    registered: dict[str, UserSummary]
    updated: dict[str, tuple[str, int]]
    count: int = 0


def changes_of(events: Sequence[StoredEvent]) -> Changes:
    """The page folded to one final entry per user. Raises EventRejected as `users.apply` does."""
    found = Changes({}, {})
    for event in events:
        said: Said | None = users.said(event)
        found.count += said is not None
        if isinstance(said, UserRegistered):
            found.updated.pop(said.user_id, None)
            found.registered[said.user_id] = _registered(event, said)
        elif said is not None and said.user_id in found.registered:
            _change(found.registered, event, said)
        elif said is not None:
            found.updated[said.user_id] = (said.profile.display_name, event.recorded_at_us)
    return found
