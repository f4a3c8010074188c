"""Directories that an option names."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from traksense.errors import TraksenseError

if TYPE_CHECKING:
    from pathlib import Path


def absolute(path: Path, option: str = "--directory") -> Path:
    """The path from the root on.

    Raises:
        TraksenseError: It begins in the current directory, and that has been removed.
    """
    try:
        return path.absolute()
    except OSError as error:
        raise TraksenseError(
            f"the current directory has been removed: change to another, or give {option} as a path that begins with /"
        ) from error


def make_directory(path: Path, option: str = "--directory") -> Path:
    """The directory, made if missing, as an absolute path.

    Raises:
        TraksenseError: It cannot be made, or nothing can be put there.
    """
    path = absolute(path, option)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TraksenseError(f"cannot make {path}: {error.strerror}; take another {option}") from error
    try:
        # What the permissions say is not the whole truth: a file system may be read-only, or take no files.
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise TraksenseError(f"cannot write to {path}: {error.strerror}; take another {option}") from error
    return path
