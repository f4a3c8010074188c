"""What the tests of the schema do with a database; the databases come from `schema_fixtures`."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import attrs
import psycopg
from psycopg import sql

from traksense.store.migrate import migrate
from traksense.store.roles import ROLES

if TYPE_CHECKING:
    from pathlib import Path

    from traksense.store.migrate import MigrationReport

TIMESCALEDB = "timescaledb"
PUBLIC_RELATIONS = (
    "ts_measure",
    "ts_measure_1m",
    "ts_measure_5m",
    "ts_measure_1h",
    "cmd_ack",
    "device_event",
    "ingest_errors",
    "latest",
    "device_status",
)
PRIVATE_TABLES = (
    "tenant",
    "device",
    "series",
    "meta",
    "measure",
    "schema_version",
    "setting",
    "ingest_session",
    "dirty",
    "work",
    "step",
    "rollup_1m",
    "tenant_retention",
)

log = logging.getLogger(__name__)


def with_parts(dsn: str, *, user: str | None = None, password: str | None = None, database: str | None = None) -> str:
    """The DSN with another login or database."""
    parts = urlsplit(dsn)
    login = f"{user}:{password}" if user is not None else parts.netloc.rpartition("@")[0]
    place = parts.netloc.rpartition("@")[2]
    path = f"/{database}" if database is not None else parts.path
    return urlunsplit(parts._replace(netloc=f"{login}@{place}", path=path))


@attrs.frozen
class Server:
    """Where databases can be made."""

    dsn: str
    engine: str
    bindir: Path | None

    @property
    def timescaledb(self) -> bool:
        """Whether measurements are in a hypertable here."""
        return self.engine == TIMESCALEDB


@attrs.frozen
class Database:
    """One database of one test. `dsn` is who migrates, `admin` the superuser."""

    dsn: str
    admin: str
    server: Server
    roles: list[str] = attrs.field(factory=list)

    def connect(self, dsn: str | None = None) -> psycopg.Connection[tuple[Any, ...]]:
        """A session in autocommit; the caller closes it."""
        return psycopg.connect(dsn or self.dsn, autocommit=True)

    def run(self, *statements: str, dsn: str | None = None) -> None:
        """Execute statements, as the role of `dsn`."""
        with self.connect(dsn) as connection:
            for statement in statements:
                connection.execute(statement)

    def rows(self, query: str, *args: object, dsn: str | None = None, tenant: str | None = None) -> list[Any]:
        """The rows of a query, in a session that has set app.tenant_id to `tenant` unless it is None."""
        with self.connect(dsn) as connection:
            if tenant is not None:
                connection.execute("SELECT set_config('app.tenant_id', %s, false)", (tenant,))
            return connection.execute(query, args).fetchall()

    def value(self, query: str, *args: object, dsn: str | None = None, tenant: str | None = None) -> Any:
        """The first value of the first row."""
        return self.rows(query, *args, dsn=dsn, tenant=tenant)[0][0]

    def create_role(self, prefix: str, options: str = "") -> str:
        """Make a role that may log in and return its DSN; it is dropped with the database."""
        name, password = f"{prefix}_{secrets.token_hex(4)}", secrets.token_hex(8)
        with self.connect(self.admin) as connection:
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} " + options).format(
                    sql.Identifier(name), sql.Literal(password)
                )
            )
        self.roles.append(name)
        return with_parts(self.dsn, user=name, password=password)

    def create_app_role(self) -> str:
        """A role as an application has it: SELECT on the public relations, nothing else; returns its DSN."""
        dsn = self.create_role("app")
        relations = ", ".join(f"public.{relation}" for relation in PUBLIC_RELATIONS)
        self.run(f"GRANT SELECT ON {relations} TO {user_of(dsn)}", dsn=self.dsn)
        return dsn

    def create_member(self, role: str) -> str:
        """A login whose only right is to be a member of a role of ours; returns its DSN."""
        if not self.value("SELECT to_regrole(%s) IS NOT NULL", role, dsn=self.admin):
            # The owner may not create roles, and no superuser has migrated a database of this server yet.
            self.run(*(f"CREATE ROLE {name} NOLOGIN" for name in ROLES), dsn=self.admin)
        # The roles may have been made after this database was migrated.
        self.migrate()
        dsn = self.create_role("member")
        self.run(f"GRANT {role} TO {user_of(dsn)}", dsn=self.admin)
        return dsn

    def migrate(self) -> MigrationReport:
        """Migrate as `dsn`."""
        return asyncio.run(migrate(self.dsn, log=log))

    def aggregate(self) -> None:
        """Bring the stored aggregates up to date, as the maintenance task or TimescaleDB's jobs do."""
        with self.connect() as connection:
            if not self.server.timescaledb:
                while connection.execute("SELECT traksense.roll_up()").fetchone() != (0,):
                    pass
                return
            connection.execute("CALL traksense.refresh_aggregates()")

    def add_series(self, tenant: str, device: str, point: str, unit: str | None = None, site: str = "site") -> int:
        """Register a series with its tenant and device, as the service does."""
        with self.connect() as connection:
            connection.execute("INSERT INTO traksense.tenant VALUES (%s) ON CONFLICT DO NOTHING", (tenant,))
            connection.execute(
                "INSERT INTO traksense.device VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (tenant, site, device),
            )
            row = connection.execute(
                "INSERT INTO traksense.series (tenant_id, site_id, device_id, point_id, unit)"
                " VALUES (%s, %s, %s, %s, %s) RETURNING series_id",
                (tenant, site, device, point, unit),
            ).fetchone()
        assert row is not None
        return int(row[0])


def user_of(dsn: str) -> str:
    """Who logs in."""
    return str(urlsplit(dsn).username)


def give_to_plain_owner(database: Database) -> Database:
    """The same database, of a role without any attribute."""
    dsn = database.create_role("owner")
    name = urlsplit(dsn).path[1:]
    database.run(f'ALTER DATABASE "{name}" OWNER TO {user_of(dsn)}', dsn=database.admin)
    return attrs.evolve(database, dsn=dsn)
