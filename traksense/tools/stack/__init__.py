"""Real processes on this machine, for demo, prove, bench and tests: a broker, a PostgreSQL, the service.

    async with open_postgres(d) as postgres, open_broker(d) as broker:
        dsn = await postgres.create_database("traksense", exist_ok=True)
        async with open_service({"DATABASE_URL": dsn, "MQTT_URL": broker.url}, d) as service:
            await service.wait_ready()

They listen on the loopback interface, keep state and logs in the directory given, and end when we end,
however we end.
"""

from traksense.tools.stack.broker import BrokerOptions, BrokerProcess, TlsFiles, find_mosquitto, open_broker
from traksense.tools.stack.errors import StackError
from traksense.tools.stack.pooler import PoolerProcess, find_pgbouncer
from traksense.tools.stack.postgres import PostgresProcess, open_postgres
from traksense.tools.stack.postgres_programs import embedded_bindir, major_of, postgres_version, system_bindirs
from traksense.tools.stack.processes import Child
from traksense.tools.stack.servers import Server, free_port
from traksense.tools.stack.service import Samples, ServiceProcess, open_service, parse_metrics
from traksense.tools.stack.standby import BASEBACKUP, StandbyProcess

__all__ = [
    "BASEBACKUP",
    "BrokerOptions",
    "BrokerProcess",
    "Child",
    "PoolerProcess",
    "PostgresProcess",
    "Samples",
    "Server",
    "ServiceProcess",
    "StackError",
    "StandbyProcess",
    "TlsFiles",
    "embedded_bindir",
    "find_mosquitto",
    "find_pgbouncer",
    "free_port",
    "major_of",
    "open_broker",
    "open_postgres",
    "open_service",
    "parse_metrics",
    "postgres_version",
    "system_bindirs",
]
