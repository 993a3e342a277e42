"""What a usage event costs the router: `python -m tests.bench.usage_event`, then a number of attempts on each line.

Journal and sender as the router has them: each attempt is recorded before it is sent and when it ends, both synced,
then reported and removed when it is acknowledged. Answers a line of CPU in us per event: user + system time of the
process with all its threads, what makes up the two records included.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import grpc.aio
import uvloop

from router_service.usage.channel import usage_channel
from router_service.usage.journal import SqliteJournal
from router_service.usage.sender import UsageSender
from service_runtime.ids import uuid7
from tests.bench.usage_sink import usage_sink
from tests.support.attempts import journal_metrics, settled_attempt

AT_ONCE = 32
_LOOK_EVERY_S = 0.05


async def cpu_us_per_event(directory: Path, channel: grpc.aio.Channel, attempts: int) -> float:
    """The cost of `attempts` attempts, `AT_ONCE` under way at a time, until the last event is acknowledged."""
    metrics = journal_metrics()
    journal = SqliteJournal.open(directory, max_bytes=1 << 30, metrics=metrics, new_epoch=lambda: str(uuid7()))
    sender = UsageSender(journal, channel, router_id="bench", metrics=metrics)

    async def worker(count: int) -> None:
        for _ in range(count):
            settled = settled_attempt(uuid7())
            await journal.opened(settled.opened)
            await journal.settled(settled)

    before_s = time.process_time()
    sender.start()
    await asyncio.gather(*(worker(attempts // AT_ONCE) for _ in range(AT_ONCE)))
    while journal.waiting:
        await asyncio.sleep(_LOOK_EVERY_S)
    took_s = time.process_time() - before_s
    await sender.stop(0)
    await journal.close()
    return took_s / (attempts // AT_ONCE * AT_ONCE) * 1e6


async def _answer(target: str) -> None:
    with tempfile.TemporaryDirectory(prefix="turnpike-bench-") as directory:
        async with usage_channel(target) as channel:
            number = 0
            while line := await asyncio.to_thread(sys.stdin.readline):
                number += 1
                print(await cpu_us_per_event(Path(directory) / f"round-{number}", channel, int(line)), flush=True)


def main() -> None:
    """Say `ready`, then answer until standard input ends."""
    with usage_sink() as target:
        print("ready", flush=True)
        uvloop.run(_answer(target))


if __name__ == "__main__":
    main()
