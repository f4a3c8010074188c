"""`traksense demo --psql`: a look at the data, whether or not the demo runs."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

from traksense.errors import TraksenseError
from traksense.tools.demo.place import DATABASE, SERVICE_NAME, Place, find_psql
from traksense.tools.stack import PostgresProcess

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def psql(directory: Path, arguments: Sequence[str]) -> int:
    """Run psql on the demo's database, which is started for that time unless it runs; returns psql's exit status.

    Raises:
        TraksenseError: There is no psql, or no demo was here.
    """
    place = Place(directory, make=False)
    program = find_psql()
    if program is None:
        raise TraksenseError("no psql here: pip install 'traksense[demo]', or apt-get install postgresql-client")
    if place.database_runs():
        return _run(program, place, arguments)
    with PostgresProcess(place.directory, port=place.ports({})["postgres"]) as postgres:
        place.write_service_file(postgres.dsn_of(DATABASE))
        return _run(program, place, arguments)


def _run(program: Path, place: Place, arguments: Sequence[str]) -> int:
    environment = os.environ | {"PGSERVICEFILE": str(place.service_file), "PGSERVICE": SERVICE_NAME}
    # Ctrl-C is psql's: it cancels a query there. What is ignored stays so in a child, but psql sets its own.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.call([program, *arguments], env=environment)  # noqa: S603  (the user's own arguments)
    finally:
        signal.signal(signal.SIGINT, before)
