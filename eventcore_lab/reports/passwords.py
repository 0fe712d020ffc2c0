"""Passwords stay out of reports: they are refused as parameters, and blanked in whatever a notebook printed."""

from __future__ import annotations

import re
from typing import Any

from eventcore_lab.spec import UsageError

_IN_URL = re.compile(r"(?P<before>://[^\s:/@\"'<>]*:)(?P<password>[^\s/\"'<>]+)(?=@)")
_IN_QUERY = re.compile(r"(?P<before>[?&;](?:amp;)?password=)(?P<password>[^\s&\"'<>]+)", re.IGNORECASE)
_IN_KEYWORDS = re.compile(r"(?P<before>\bpassword\s*=\s*)(?P<password>'[^']*'|[^\s&,;)\"'<>]+)", re.IGNORECASE)
_SECRET_NAME = re.compile(r"password|passwd|secret|credential|api_?key", re.IGNORECASE)


def refuse(name: str, value: str) -> None:
    """UsageError when the value of a parameter holds a password, or its name says that it is one.

    The message never repeats the value.
    """
    is_one = _SECRET_NAME.search(name) and value and not value.startswith("env:")
    if is_one or any(pattern.search(value) for pattern in (_IN_URL, _IN_QUERY, _IN_KEYWORDS)):
        raise UsageError(
            f"{name[:60]}: a password would be written into the report; "
            "pass it by name: export LAB_DSN=…; -p store=env:LAB_DSN"
        )


def blank(content: Any) -> Any:
    """`content` (text, or JSON-like lists and dicts of it) with `***` for each password of a URL or a DSN."""
    if isinstance(content, str):
        if "://" not in content and "assword" not in content.lower():
            return content  # most text, and every embedded image: looked at once, quickly
        for pattern in (_IN_URL, _IN_QUERY, _IN_KEYWORDS):
            content = pattern.sub(r"\g<before>***", content)
        return content
    if isinstance(content, dict):
        return {blank(key): blank(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [blank(item) for item in content]
    return content
