"""The chapter's example: users who register and change their profile, each in a stream of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from eventcore_lab.commands.command import CommandRejected, Fold, Said
from eventcore_lab.events import NewEvent, StreamId

USER_REGISTERED, USER_PROFILE_UPDATED = "UserRegistered", "UserProfileUpdated"

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+\Z")
_encode = msgspec.json.Encoder().encode


class Profile(Struct, frozen=True, gc=False):
    first_name: str
    last_name: str
    display_name: str

    @classmethod
    def named(cls, first_name: str, last_name: str) -> Profile:
        return cls(first_name, last_name, f"{first_name} {last_name}")


class UserRegistered(Struct, frozen=True):
    user_id: str
    email: str
    profile: Profile


class UserProfileUpdated(Struct, frozen=True):
    user_id: str
    profile: Profile


USER_EVENTS: Mapping[str, type[Struct]] = {USER_REGISTERED: UserRegistered, USER_PROFILE_UPDATED: UserProfileUpdated}


class User(Struct, frozen=True, gc=False):
    """What a user's stream folds into."""

    email: str
    display_name: str


_registered = msgspec.json.Decoder(UserRegistered).decode
_updated = msgspec.json.Decoder(UserProfileUpdated).decode


def _apply(user: User | None, event: Said) -> User | None:
    if event.type == USER_REGISTERED:
        registered = _registered(event.data)
        return User(registered.email, registered.profile.display_name)
    if event.type == USER_PROFILE_UPDATED and user is not None:
        return User(user.email, _updated(event.data).profile.display_name)
    return user


USER = Fold("user", None, _apply, User | None)


def user_stream(user_id: str) -> StreamId:
    return StreamId(f"user-{user_id}")


class CreateUser(Struct, frozen=True):
    """Registers a user; rejected if that user exists, for an email without @ or an empty name."""

    user_id: str
    email: str
    first_name: str
    last_name: str

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return {user_stream(self.user_id): USER}

    def decide(self, states: Mapping[StreamId, User | None]) -> Sequence[tuple[StreamId, NewEvent]]:
        [(stream, user)] = states.items()
        if user is not None:
            raise CommandRejected(f"user {self.user_id} exists already")
        if not _EMAIL.match(self.email) or not self.first_name or not self.last_name:
            raise CommandRejected(f"user {self.user_id}: an email address and both names are needed")
        profile = Profile.named(self.first_name, self.last_name)
        return [(stream, NewEvent(USER_REGISTERED, _encode(UserRegistered(self.user_id, self.email, profile))))]


class UpdateProfile(Struct, frozen=True):
    """Gives a user other names; rejected for somebody who is not registered or an empty name."""

    user_id: str
    first_name: str
    last_name: str

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return {user_stream(self.user_id): USER}

    def decide(self, states: Mapping[StreamId, User | None]) -> Sequence[tuple[StreamId, NewEvent]]:
        [(stream, user)] = states.items()
        if user is None:
            raise CommandRejected(f"user {self.user_id} is not registered")
        if not self.first_name or not self.last_name:
            raise CommandRejected(f"user {self.user_id}: both names are needed")
        profile = Profile.named(self.first_name, self.last_name)
        return [(stream, NewEvent(USER_PROFILE_UPDATED, _encode(UserProfileUpdated(self.user_id, profile))))]
