"""The SQL that comes with the package: the migrations, and the roles."""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from traksense.errors import StoreMisconfiguredError
from traksense.store import roles

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

LATEST: Final = 16
"""The schema version that this release works with; a test holds it to the newest file in `sql/`."""

_FILE_NAME: Final = re.compile(r"(?P<version>\d{4})_(?P<name>[a-z0-9_]+)\.sql")


@attrs.frozen
class Migration:
    """One SQL file."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text (hex), the same whatever line ends a checkout has given the file."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.version:04}_{self.name}"


def migrations() -> tuple[Migration, ...]:
    """Every migration of this release, in order.

    Raises:
        StoreMisconfiguredError: The installation is incomplete: files are missing or misnamed.
    """
    found: dict[int, Migration] = {}
    for entry in _sql_directory().iterdir():
        match = _FILE_NAME.fullmatch(entry.name)
        if match is None:
            continue
        version = int(match["version"])
        if version in found:
            raise StoreMisconfiguredError(
                f"two migrations have the number {version}: {found[version]} and {entry.name}"
            )
        found[version] = Migration(version, match["name"], entry.read_text(encoding="utf-8"))
    if sorted(found) != list(range(1, LATEST + 1)):
        raise StoreMisconfiguredError(
            f"this installation has the migrations {sorted(found)} instead of 1 to {LATEST}: install it again"
        )
    return tuple(found[version] for version in sorted(found))


def roles_sql() -> str:
    """What `sql/roles.sql` says."""
    return (_sql_directory() / roles.FILE).read_text(encoding="utf-8")


def _sql_directory() -> Traversable:
    """`traksense/sql` of the installed package, or `sql/` of the repository that this file is in."""
    packaged = importlib.resources.files("traksense") / "sql"
    if packaged.is_dir():
        return packaged
    repository = Path(__file__).parents[2] / "sql"
    if repository.is_dir():
        return repository
    raise StoreMisconfiguredError("the SQL files of traksense are missing: install it again")
