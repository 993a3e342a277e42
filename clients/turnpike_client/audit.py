"""What the ledger's proof of itself found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from turnpike_client.enums import LedgerCheck


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One thing that does not agree: which, what it should be and what it is, in words."""

    subject: str
    expected: str
    actual: str


@dataclass(frozen=True, slots=True)
class LedgerCheckResult:
    """What came of one check. `unchecked` names parts that took too long: they are not known to be right."""

    check: LedgerCheck
    checked: int
    wrong: int
    discrepancies: tuple[Discrepancy, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether all was checked and nothing is wrong."""
        return not self.wrong and not self.unchecked


@dataclass(frozen=True, slots=True)
class LedgerAudit:
    """What came of every check, over the whole window."""

    results: tuple[LedgerCheckResult, ...]
    start: datetime
    end: datetime

    @property
    def is_right(self) -> bool:
        """Whether the books balance."""
        return all(result.is_right for result in self.results)
