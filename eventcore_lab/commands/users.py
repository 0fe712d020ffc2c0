"""The chapter's example: users who are created."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from eventcore_lab.commands.command import CommandRejected
from eventcore_lab.events import NewEvent, StoredEvent, StreamId

USER_REGISTERED = "UserRegistered"

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+\Z")
_encode = msgspec.json.Encoder().encode


class _UserRegistered(Struct):
    user_id: str
    email: str
    first_name: str
    last_name: str


class CreateUser(Struct, frozen=True):
    """Registers a user in a stream of their own; rejected if that user exists, an email without @ or an empty name."""

    user_id: str
    email: str
    first_name: str
    last_name: str

    @property
    def streams(self) -> Sequence[StreamId]:
        return (StreamId(f"user-{self.user_id}"),)

    def initial(self) -> bool:
        return False

    def fold(self, exists: bool, event: StoredEvent) -> bool:
        return exists or event.type == USER_REGISTERED

    def decide(self, exists: bool) -> Sequence[tuple[StreamId, NewEvent]]:
        if exists:
            raise CommandRejected(f"user {self.user_id} exists already")
        if not _EMAIL.match(self.email) or not self.first_name or not self.last_name:
            raise CommandRejected(f"user {self.user_id}: an email address and both names are needed")
        data = _encode(_UserRegistered(self.user_id, self.email, self.first_name, self.last_name))
        return [(self.streams[0], NewEvent(USER_REGISTERED, data))]
