"""The whole of Turnpike as real processes: launcher, Postgres, usage_service, router_service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.support.ports import free_ports


@dataclass
class Stack:
    """Turnpike as `make run` starts it, with its own ports and data; everything it prints is kept in `log`."""

    data_dir: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    router_port: int = field(default_factory=free_ports)
    usage_port: int = field(default_factory=free_ports)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.data_dir.with_suffix(".log")

    @property
    def router(self) -> str:
        return f"127.0.0.1:{self.router_port}"

    @property
    def usage(self) -> str:
        return f"127.0.0.1:{self.usage_port}"

    def variables(self) -> dict[str, str]:
        """The environment of the processes: the tester's own TURNPIKE, ROUTER, USAGE and key variables are left out."""
        foreign = ("TURNPIKE_", "ROUTER_", "USAGE_", "GROQ_", "OPENROUTER_", "LLM7_", "LOCAL_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return inherited | {
            "TURNPIKE_DATA_DIR": str(self.data_dir),
            "ROUTER_PORT": str(self.router_port),
            "USAGE_PORT": str(self.usage_port),
            **self.environment,
        }

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the launcher and return without waiting."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service_runtime.launcher", "usage_service", "router_service"],
                env=self.variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.process

    def start(self, *, within_s: float = 60.0) -> Self:
        """Start, and wait until the launcher says that it is ready."""
        offset = self.log.stat().st_size if self.log.exists() else 0
        process = self.launch()
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if b"ready in" in self.log.read_bytes()[offset:]:
                return self
            if process.poll() is not None:
                break
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"Turnpike did not start:\n{self.output()}")

    def stop(self, *, within_s: float = 30.0) -> int:
        """SIGTERM, as a supervisor stops it; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def kill(self) -> None:
        """SIGKILL to the launcher alone: its children must see to themselves."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""
