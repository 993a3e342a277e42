"""The moment that the reports are asked at."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from usage_service.domain.window import Window

NOW = datetime(2026, 3, 18, 10, 41, 7, 123_000, tzinfo=UTC)
LAST_DAY = Window(NOW - timedelta(days=1), NOW)


@dataclass
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now
