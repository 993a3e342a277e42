"""Bundles the stubs of the contract into the wheel, where `turnpike_client` finds them as `turnpike`.

An editable install takes them from the working tree instead: a copy would go stale at the next change of the contract.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BundleStubs(BuildHookInterface):
    """Adds the stubs from the repository, or from beside this file when building out of a source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        candidates = [root.parent / "protos" / "gen" / "turnpike", root / "turnpike"]
        stubs = next((path for path in candidates if path.is_dir()), None)
        if stubs is None:
            raise FileNotFoundError(f"no stubs in {' or '.join(map(str, candidates))}; run `make protos`")
        build_data["force_include"][str(stubs)] = "turnpike"
