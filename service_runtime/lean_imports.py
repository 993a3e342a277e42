"""Keeps libraries from importing what no service uses.

structlog and httpx import rich, click and pygments where they are installed, and they are, for the command line of the
client: 4 MB of every process and a fifth of a second of its start. Both libraries do without.
"""

from __future__ import annotations

import sys

_UNUSED = ("click", "pygments", "rich")


def leave_out_unused() -> None:
    """Make these imports fail from now on. Call it before anything else is imported, in a service's `__main__` only."""
    for name in _UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # how Python marks a module as not to be found
