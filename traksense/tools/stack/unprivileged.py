"""The user as whom PostgreSQL runs when we are root, and directories that this user reaches."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import stat
from pathlib import Path
from typing import Final

from traksense.tools.stack.errors import StackError
from traksense.tools.stack.processes import Identity, run_to_end

_UNPRIVILEGED_USERS: Final = ("postgres", "nobody")
# That every user reaches these places is the point, and `make_base` takes nothing that others planted there.
_PLACES_FOR_ALL: Final = (Path("/var/tmp"), Path("/tmp"))  # noqa: S108


def owner_or_unprivileged(cluster: Path) -> Identity:
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


def may(identity: Identity, test: str, path: Path) -> bool:
    """Ask the kernel, as that user: it knows of parents, groups, access lists and mounts."""
    done = run_to_end(["/usr/bin/env", "test", test, path], cwd=Path("/"), identity=identity)
    return done.returncode == 0


def reachable_directory(directory: Path, identity: Identity | None) -> tuple[Path, str | None]:
    """The directory, or one in its place that the user can reach and one line that says so."""
    if identity is None:
        return directory, None
    parent = next(path for path in directory.parents if path.exists())
    if may(identity, "-x", parent):
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


def make_base(directory: Path, identity: Identity | None) -> None:
    """Make the directory, reachable for the server's user; one that somebody else planted is refused."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    status = directory.lstat()
    if directory.parent in _PLACES_FOR_ALL and (not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid()):
        raise StackError(f"{directory} is not a directory of ours: remove it or take another")
    if identity is None or may(identity, "-x", directory):
        return
    directory.chmod(stat.S_IMODE(directory.stat().st_mode) | stat.S_IXOTH)
    if not may(identity, "-x", directory):
        raise StackError(
            f"user {identity.name}, as whom PostgreSQL runs, cannot reach {directory}: "
            "allow it (chmod o+x) or take another directory"
        )


def write_private(path: Path, text: str) -> None:
    """Replace a file that only we may read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
