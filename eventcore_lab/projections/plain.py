"""The users once more, as plainly as can be said, and a digest of a row: what every read model of theirs is held against.

Nothing of `users` or of its decoders is used here, so that a mistake there is not made here too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterable
from typing import Any

from eventcore_lab.events import StoredEvent
from eventcore_lab.projections.users import Row


async def folded(events: AsyncIterable[StoredEvent]) -> dict[str, Row]:
    """user id → row, from all of a store's events in position order. As much memory as there are users."""
    rows: dict[str, Row] = {}
    async for event in events:
        if event.type == "UserRegistered":
            said = json.loads(event.data)
            name, at = said["profile"]["display_name"], event.recorded_at_us
            rows[said["user_id"]] = (said["user_id"], said["email"], name, at, at)
        if event.type == "UserProfileUpdated":
            said = json.loads(event.data)
            if said["user_id"] in rows:
                user_id, email, _, created_at, _ = rows[said["user_id"]]
                name, at = said["profile"]["display_name"], event.recorded_at_us
                rows[user_id] = (user_id, email, name, created_at, at)
    return rows


def digest(row: tuple[Any, ...]) -> int:
    """64 bits over what a row says, signed."""
    return int.from_bytes(hashlib.blake2b(json.dumps(row).encode(), digest_size=8).digest(), "big", signed=True)
