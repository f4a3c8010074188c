"""Databases on a real TimescaleDB that needs no server: PGlite, PostgreSQL with the extension in WebAssembly on Node.

The package comes from the npm registry, in the version and with the checksum that `pglite/package-lock.json` pins, into
a temporary directory. Skipped where there is no Node, or no registry.
"""

from __future__ import annotations

import contextlib
import re
import select
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from schema_servers import TIMESCALEDB, Database, Server

from tests.patience import HANG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES: Final = Path(__file__).parent / "pglite"
NODE_MINIMUM: Final = 18
"""Source: PGlite's use of `fetch` and of top-level `await` in modules."""

INSTALL_SECONDS: Final = 120.0

_UNREACHABLE: Final = re.compile(
    r"\b(?:ENOTFOUND|EAI_AGAIN|ECONN\w+|ENETUNREACH|EHOSTUNREACH|ETIMEDOUT|ERR_SOCKET\w+|E5\d\d)\b"
)


@pytest.fixture(scope="session")
def pglite_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `server.mjs` and the package are."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("no Node.js: node or npm is missing")
    version = subprocess.run(
        [node, "--version"], capture_output=True, text=True, check=True, timeout=HANG_SECONDS
    ).stdout
    if int(version.strip().lstrip("v").partition(".")[0]) < NODE_MINIMUM:
        pytest.skip(f"no Node.js: {version.strip()} is older than {NODE_MINIMUM}")
    directory = tmp_path_factory.mktemp("pglite")
    for file in FILES.iterdir():
        shutil.copy(file, directory)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1"]
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        pytest.skip("no npm registry: it did not answer in time")
    if done.returncode and _UNREACHABLE.search(done.stderr):
        pytest.skip("no npm registry: it cannot be reached")
    assert 0 == done.returncode, done.stderr
    return directory


@contextlib.contextmanager
def open_pglite(directory: Path) -> Iterator[Database]:
    """A process with one empty database, whose superuser is who connects as postgres."""
    with (directory / "server.log").open("ab") as log:
        process = subprocess.Popen(
            ["node", "server.mjs"], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], HANG_SECONDS)
        port = process.stdout.readline().strip() if ready else b""
        assert port, (directory / "server.log").read_text(errors="replace")
        dsn = f"postgresql://postgres:postgres@127.0.0.1:{int(port)}/postgres"
        yield Database(dsn, dsn, Server(dsn, TIMESCALEDB, None))
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


# The names of `schema_fixtures`: a module that has these takes the tests of other modules with it.


@pytest.fixture
def bare(pglite_directory: Path) -> Iterator[Database]:
    """A fresh database without a schema."""
    with open_pglite(pglite_directory) as database:
        yield database


@pytest.fixture
def other_bare(pglite_directory: Path) -> Iterator[Database]:
    """Another one, to compare with."""
    with open_pglite(pglite_directory) as database:
        yield database


@pytest.fixture
def migrated(bare: Database) -> Database:
    """A fresh, migrated database."""
    bare.migrate()
    return bare


@pytest.fixture(scope="module")
def schema_server_module(pglite_directory: Path) -> Iterator[Database]:
    """A migrated database for all tests of a module, which leave it as they find it."""
    with open_pglite(pglite_directory) as database:
        database.migrate()
        yield database
