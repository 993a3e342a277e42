"""Pages of what a fake has; its tokens are plain numbers."""

from __future__ import annotations

from typing import Any


def page_of(items: list[Any], request: Any) -> tuple[list[Any], str]:
    """The items that a paged request asks for, and the token of the next page."""
    size = request.page_size or 100
    start = int(request.page_token or 0)
    return items[start : start + size], str(start + size) if start + size < len(items) else ""
