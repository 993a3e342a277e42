"""What the router says of itself to health checks: of each service, and of the parts that an operator asks after."""

from __future__ import annotations

from router_service.tenants.snapshot import TenantSnapshot
from router_service.usage.journal import SqliteJournal
from service_runtime.database import ServiceDatabase
from service_runtime.grpc_server import GrpcServer

COMPLETIONS = "turnpike.router.v1.RouterService"
TENANTS = "turnpike.router.v1.TenantService"
JOURNAL = f"{COMPLETIONS}/journal"
DATABASE = f"{COMPLETIONS}/db"


class RouterReadiness:
    """Judges each name by what it needs; liveness needs nothing.

    Completions need room in the journal, and tenants from Postgres or from the snapshot: once there are any, an outage
    of Postgres changes nothing. TenantService needs Postgres now.
    """

    def __init__(
        self, server: GrpcServer, database: ServiceDatabase, journal: SqliteJournal, snapshot: TenantSnapshot
    ) -> None:
        self._server = server
        self._database = database
        self._journal = journal
        self._snapshot = snapshot
        self._is_draining = False
        for name in (JOURNAL, DATABASE):
            server.add_health_name(name)

    async def judge(self) -> None:
        """Look at everything once, and say so."""
        has_room = await self._journal.takes_new_work()
        database_answers = await self._database.answers()
        if self._is_draining:
            return
        has_tenants = self._database.is_open or len(self._snapshot) > 0
        self._server.set_serving(has_room, JOURNAL)
        self._server.set_serving(database_answers, DATABASE)
        self._server.set_serving(database_answers, TENANTS)
        self._server.set_serving(has_room and has_tenants, COMPLETIONS)

    def drain(self) -> None:
        """Say NOT_SERVING of everything from now on, while requests are still taken."""
        self._is_draining = True
        self._server.set_serving(False)
