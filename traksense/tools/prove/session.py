"""The command: runs, one after the other, on one PostgreSQL, and what is left of them."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

from traksense.terminal import Screen, say
from traksense.tools.interrupt import INTERRUPTED, run_interruptible
from traksense.tools.places import make_directory
from traksense.tools.prove.report import open_progress, table
from traksense.tools.prove.results import Total, result
from traksense.tools.prove.run import Options, Run
from traksense.tools.prove.schedule import missing_programs
from traksense.tools.prove.servers import Servers
from traksense.tools.prove.stage import make_template
from traksense.tools.stack import StackError, open_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

    from traksense.tools.interrupt import Interruption
    from traksense.tools.prove.report import Lines
    from traksense.tools.prove.results import Result
    from traksense.tools.stack import PostgresProcess

POSTGRES_SETTINGS: Final = {
    # Recovery begins with an fsync of every file; nothing here outlives the operating system, so one for all will do.
    "recovery_init_sync_method": "syncfs",
    "max_connections": "50",
    # Restoring a dump in one transaction locks every partition with its indexes.
    "max_locks_per_transaction": "512",
    # What a standby has missed while it was away.
    "wal_keep_size": "512MB",
    "wal_retrieve_retry_interval": "100ms",
}

STOP_SECONDS: Final = 30.0
"""How long the database servers may take to end, whatever ended the session."""


@attrs.frozen(kw_only=True)
class Request:
    """What the command line asks for; `chosen`: the faults were named, so that none may be left out."""

    options: Options
    seed: int
    runs: int
    directory: Path | None
    as_json: bool
    chosen: bool = True


def prove(request: Request) -> int:
    """Do it, tell it; returns the exit status: 0 if nothing was found, 1 if something was.

    Raises:
        StackError: Something that is needed is not here, or does not run.
    """
    # The publisher's and asyncpg's complaints are what this is about; they would only tear the display.
    logging.getLogger().addHandler(logging.NullHandler())
    results: list[Result] = []
    with _directory(request.directory) as place:
        interrupted = trio.run(run_interruptible, partial(_prove, request, place.path, results))
        total = Total(results)
        place.keep |= bool(total.failed)
        if interrupted:
            return INTERRUPTED
        _tell(request, total, place.path if place.keep else None)
    return 1 if total.failed else 0


async def _prove(request: Request, directory: Path, results: list[Result], interruption: Interruption) -> None:
    interruption.remains = f"stopped at once; remains: {directory}"
    with open_progress() as progress:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(progress.run)
            async with open_postgres(directory / "postgres", settings=POSTGRES_SETTINGS) as postgres:
                if postgres.note:
                    progress.phase(postgres.note)
                request = _possible(request, postgres, progress)
                await make_template(postgres)
                servers = Servers(postgres, directory)
                try:
                    for seed in range(request.seed, request.seed + request.runs):
                        outcome = await _run(request, seed, directory, servers, progress)
                        results.append(outcome)
                finally:
                    with trio.move_on_after(STOP_SECONDS, shield=True):
                        await servers.stop()
            nursery.cancel_scope.cancel()


def _possible(request: Request, postgres: PostgresProcess, progress: Lines) -> Request:
    """Without the faults whose programs are not here.

    Raises:
        StackError: One of them was asked for.
    """
    missing = missing_programs(request.options.faults, postgres.bindir)
    if not missing:
        return request
    words = "; ".join(f"{fault} needs {program}" for fault, program in missing.items())
    if request.chosen:
        raise StackError(words)
    progress.phase(f"left out: {words}")
    faults = tuple(fault for fault in request.options.faults if fault not in missing)
    return attrs.evolve(request, options=attrs.evolve(request.options, faults=faults))


async def _run(request: Request, seed: int, directory: Path, servers: Servers, progress: Lines) -> Result:
    place = directory / f"seed-{seed}"
    run = Run(request.options, seed)
    await run.run(place, servers, progress)
    outcome = result(run)
    if outcome.passed and request.directory is None:
        await trio.to_thread.run_sync(shutil.rmtree, place)
    if outcome.passed:
        await servers.primary.drop_database(f"prove_{seed}")
    progress.end(outcome)
    return outcome


@attrs.define
class _Place:
    path: Path
    keep: bool


@contextlib.contextmanager
def _directory(wanted: Path | None) -> Iterator[_Place]:
    """The directory asked for, or a temporary one that vanishes unless it is kept.

    Raises:
        TraksenseError: The directory asked for cannot be used, or is not empty: servers of an earlier session would be
            taken up again.
    """
    if wanted is not None:
        wanted = make_directory(wanted)
        if any(wanted.iterdir()):
            raise StackError(f"{wanted} is not empty: take another --directory")
        yield _Place(wanted, keep=True)
        return
    place = _Place(Path(tempfile.mkdtemp(prefix="traksense-prove-")), keep=False)
    # PostgreSQL runs as another user when we are root.
    place.path.chmod(0o711)
    try:
        yield place
    finally:
        if not place.keep:
            shutil.rmtree(place.path, ignore_errors=True)


def _tell(request: Request, total: Total, kept: Path | None) -> None:
    if request.as_json:
        asked = {"seed": request.seed, **attrs.asdict(request.options)}
        answer = asked | total.as_dict() | {"directory": None if kept is None else str(kept)}
        say(json.dumps(answer))
        return
    say(table(total, Screen.of()))
    if kept is not None and total.failed:
        say(f"Kept: {kept} (traksense.log under seed-* is the service's log)")
    sys.stdout.flush()
