"""Why a process cannot start.

    StartupError                one line for the operator: what is wrong and what to do
    ├── settings.SettingsError
    ├── migrations.MigrationError
    ├── embedded_postgres.EmbeddedPostgresError
    └── grpc_server.PortTaken

`process.run` prints the line and exits with code 2; there is no traceback, because nothing is wrong with the program.
"""

from __future__ import annotations

EXIT_CANNOT_START = 2


class StartupError(Exception):
    """The process cannot start. The message is one line, names the value and the remedy, and holds no secret."""
