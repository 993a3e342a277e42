"""Carries out one fault: strike, hold, heal, and wait until what was struck is back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from tests.chaos import plan
from tests.chaos.checker import Garbling
from tests.chaos.plan import Fault
from tests.chaos.postgres import backends_of, postmaster_of
from tests.chaos.processes import ChaosFailed, Program, Unplanned
from tests.chaos.proxy import FAULTS, HEAL
from tests.chaos.site import Site

_START_RETRY_S = 0.3
_BACK_S = 60.0
_LIFE_S = 2.0
_EXIT_CANNOT_START = 2  # as a service says that what it needs is away


class Faults:
    """The faults of a run and what is to be told of them afterwards."""

    def __init__(self, site: Site, rng: random.Random) -> None:
        self._site = site
        self._rng = rng
        self._locks: dict[str, asyncio.Lock] = {}
        self.injected: Counter[tuple[str, str]] = Counter()
        self.kills: Counter[str] = Counter()
        self.garblings: list[Garbling] = []
        self.unplanned: list[Unplanned] = []
        self.exit_codes: Counter[tuple[str, int]] = Counter()
        self.refused_starts: Counter[str] = Counter()

    async def carry_out(self, storm: Sequence[Fault]) -> None:
        """All faults of a storm at their times, and every recovery to its end."""
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as strikes:
            for fault in storm:
                await asyncio.sleep(max(0.0, began_s + fault.at_s - time.monotonic()))
                strikes.create_task(self._carry_out(fault))

    async def _carry_out(self, fault: Fault) -> None:
        async with self._alone_with(plan.members(fault.target)):
            self.injected[fault.kind, fault.target] += 1
            match fault.kind:
                case "kill" | "kill-routers" | "kill-all":
                    await self._kill([name for name in plan.members(fault.target) if name != "disk"], fault.hold_s)
                case "pause":
                    await self._pause([self._site.programs[fault.target].pid], fault.hold_s)
                case "restart":
                    await self._restart(self._site.programs[fault.target])
                case "kill-client":
                    self._site.programs[fault.target].kill()
                    self._site.launch_client(fault.target)
                case "disk-full":
                    await self._fill_disk(fault.hold_s)
                case "rotate-key":
                    await self._site.rotate_key(self._rng.choice(self._site.tenants))
                case "reload":
                    tenant, preferred = self._rng.choice(self._site.tenants), self._rng.choice(plan.PROVIDER_LINKS)
                    await self._site.reload(tenant, preferred)
                case "late-answer":
                    await self._disturb(fault, "latency")
                case link_fault if link_fault in FAULTS:
                    await self._disturb(fault, link_fault)
                case _:
                    await self._strike_postgres(fault)

    # ── services ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _kill(self, names: list[str], hold_s: float) -> None:
        programs = [self._site.programs[name] for name in names]
        await self._let_live(programs)
        for program in programs:
            self._note_unplanned(program)
            program.kill()
            self.kills[program.name] += 1
        await asyncio.sleep(hold_s)
        self._rng.shuffle(programs)
        await asyncio.gather(*map(self._start, programs))

    async def _let_live(self, programs: Sequence[Program]) -> None:
        """On a slow machine a victim may only just have come back, and have nothing yet that it could lose."""
        youngest_s = min(time.monotonic() - program.ready_at_s for program in programs)
        await asyncio.sleep(max(0.0, self._rng.uniform(0.0, _LIFE_S) - youngest_s))

    async def _restart(self, program: Program) -> None:
        self._note_unplanned(program)
        code = await program.stop()
        self.exit_codes[program.name, code] += 1
        await self._start(program)

    async def _start(self, program: Program) -> None:
        """As a supervisor does: again and again, for a service may say that what it needs is away."""
        give_up_at = time.monotonic() + _BACK_S
        while not await program.start():
            assert program.process is not None
            if program.process.returncode != _EXIT_CANNOT_START:
                raise ChaosFailed(f"{program.name} ended at its start, {program.process.returncode}:\n{program.tail()}")
            self.refused_starts[program.name] += 1
            if time.monotonic() > give_up_at:
                raise ChaosFailed(f"{program.name} does not start within {_BACK_S:.0f} s:\n{program.tail()}")
            await asyncio.sleep(_START_RETRY_S)

    async def _pause(self, pids: Sequence[int], hold_s: float) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(hold_s)
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _note_unplanned(self, program: Program) -> None:
        if (end := program.unplanned()) is not None:
            self.unplanned.append(end)

    # ── database, disk, links ─────────────────────────────────────────────────────────────────────────────────────

    async def _strike_postgres(self, fault: Fault) -> None:
        keeper, postmaster = self._site.programs["postgres"], postmaster_of(self._site.postgres_directory)
        backends = backends_of(postmaster)
        match fault.kind:
            case "postgres-freeze":
                await self._pause([postmaster, *backends], fault.hold_s)
                return
            case "backend-kill":
                # The server then ends all sessions, recovers, and goes on under the same postmaster.
                if backends:
                    os.kill(self._rng.choice(backends), signal.SIGKILL)
                return
            case "postgres-kill":
                keeper.is_wanted = False
                os.kill(postmaster, signal.SIGKILL)
                self.kills["postgres"] += 1
            case "postgres-stop":
                await keeper.stop()
            case unknown:
                raise AssertionError(f"there is no fault {unknown}")
        await asyncio.sleep(fault.hold_s)
        keeper.kill()
        if not await keeper.start():
            raise ChaosFailed(f"Postgres does not start again:\n{keeper.tail()}")

    async def _fill_disk(self, hold_s: float) -> None:
        pid = self._site.programs["router-b"].pid
        self._site.disk.fill(pid)
        try:
            await asyncio.sleep(hold_s)
        finally:
            self._site.disk.heal(pid)

    async def _disturb(self, fault: Fault, how: str) -> None:
        began_at = time.time()
        self._site.proxy.set(fault.target, how, fault.value)
        try:
            await asyncio.sleep(fault.hold_s)
        finally:
            self._site.proxy.set(fault.target, HEAL)
        if how == "corrupt":
            self.garblings.append(Garbling(began_at - 1.0, time.time() + 1.0))

    @asynccontextmanager
    async def _alone_with(self, names: Sequence[str]) -> AsyncIterator[None]:
        """No second fault strikes a target before it has recovered from the first. Locked in one order."""
        locks = [self._locks.setdefault(name, asyncio.Lock()) for name in sorted(names)]
        for lock in locks:
            await lock.acquire()
        try:
            yield
        finally:
            for lock in locks:
                lock.release()
