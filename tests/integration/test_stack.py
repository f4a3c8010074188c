"""The real processes that demo, prove, bench and the other tests stand on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import ssl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import paho.mqtt.client as paho
import pytest
import trio
import trustme
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.patience import HANG_SECONDS
from traksense.tools.stack import (
    BrokerOptions,
    BrokerProcess,
    Child,
    PostgresProcess,
    Server,
    StackError,
    TlsFiles,
    broker,
    embedded_bindir,
    open_broker,
    open_postgres,
    open_service,
    parse_metrics,
    postgres,
    postgres_programs,
    processes,
    servers,
    system_bindirs,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "from signal import *; import time; signal(SIGTERM, SIG_IGN); print('deaf', flush=True); time.sleep(600)",
]

BUSY = "SELECT count(*) /* busy */ FROM generate_series(1, 100000000) a, generate_series(1, 100000000) b"
RUNNING_BUSY = (
    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT count(*) /* busy */%'"
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change the user")


@pytest.fixture(params=["mosquitto", "iotcore"])
def kind(request: pytest.FixtureRequest) -> Any:
    """Each broker in turn."""
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto")
    return request.param


class Peer:
    """A blocking MQTT 5 client for a test, without threads."""

    def __init__(
        self,
        server: BrokerProcess,
        client_id: str,
        *,
        keep: bool = False,
        acknowledge: bool = True,
        receive_maximum: int | None = None,
        user: tuple[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.messages: list[paho.MQTTMessage] = []
        self.answer: str | None = None
        self.session_present: bool | None = None
        self.granted: list[int] | None = None
        self.ended = False
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=paho.MQTTv5,
            manual_ack=not acknowledge,
        )
        self.client.max_queued_messages_set(0)
        self.client.on_message = lambda _c, _u, message: self.messages.append(message)
        self.client.on_connect = self._connected
        self.client.on_subscribe = self._subscribed
        self.client.on_disconnect = self._disconnected
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho gives it no types
        properties.SessionExpiryInterval = 3600 if keep else 0
        if receive_maximum is not None:
            properties.ReceiveMaximum = receive_maximum
        if user is not None:
            self.client.username_pw_set(*user)
        if tls is not None:
            self.client.tls_set_context(tls)
        host, port = ("localhost", server.tls_port or 0) if tls else (server.host, server.port)
        self.client.connect(host, port, clean_start=not keep, properties=properties)
        self.turn_until(lambda: self.answer is not None or self.ended)

    def _connected(self, _c: object, _u: object, flags: Any, reason: Any, _p: object) -> None:
        self.answer, self.session_present = reason.getName(), flags.session_present

    def _subscribed(self, _c: object, _u: object, _mid: object, reasons: Any, _p: object) -> None:
        self.granted = [reason.value for reason in reasons]

    def _disconnected(self, *_: object) -> None:
        self.ended = True

    def turn_until(self, done: Callable[[], bool], seconds: float = HANG_SECONDS) -> bool:
        """Do the client's work until then; whether it came to that in time."""
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            if self.client.loop(0.02) != paho.MQTT_ERR_SUCCESS:
                break
        return done()

    def subscribe(self, topic_filter: str) -> list[int] | None:
        """At QoS 1; what was granted, or None if the connection ended."""
        self.granted = None
        self.client.subscribe(topic_filter, 1)
        self.turn_until(lambda: self.granted is not None or self.ended)
        return self.granted

    def publish(self, topic: str, payloads: list[bytes]) -> None:
        """QoS 1, until all are confirmed."""
        sent = [self.client.publish(topic, payload, 1) for payload in payloads]
        assert self.turn_until(lambda: all(each.is_published() for each in sent))

    def acknowledge(self, message: paho.MQTTMessage) -> None:
        """PUBACK it."""
        self.client.ack(message.mid, message.qos)

    def vanish(self) -> None:
        """As by a crash: without a DISCONNECT."""
        connection = self.client.socket()
        assert connection is not None
        connection.close()

    @property
    def payloads(self) -> list[bytes]:
        """Of what was received, in order."""
        return [bytes(message.payload) for message in self.messages]


def numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


def gone(pid: int, seconds: float = HANG_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            # A process whose parent does not reap it (in a bare container) stays as a zombie.
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text(encoding="ascii"):
                return True
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def fetch(dsn: str, query: str) -> Any:
    async def ask() -> Any:
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            return await connection.fetchval(query)
        finally:
            connection.terminate()

    return asyncio.run(ask())


# --- children -----------------------------------------------------------------------------------------------


async def test_server_is_not_taken_for_another_one(tmp_path: Path, broker: BrokerProcess) -> None:
    """On the port of somebody's broker it does not start: whoever started it would publish there."""
    ours = BrokerProcess(tmp_path, port=broker.port)

    with pytest.raises(StackError, match=f"cannot listen on 127.0.0.1:{broker.port}: something else does already"):
        await ours.start()
    with pytest.raises(StackError, match="something else does already"):
        ours.start_sync()
    assert not ours.running


async def test_server_looks_at_its_port_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection may take a second: Trio's other tasks go on meanwhile."""
    looked_in: list[threading.Thread] = []

    def listens(*_: object) -> bool:
        looked_in.append(threading.current_thread())
        return True

    monkeypatch.setattr(servers, "listens", listens)

    with pytest.raises(StackError, match="something else does already"):
        await BrokerProcess(tmp_path).start()

    assert looked_in
    assert threading.main_thread() not in looked_in


def test_child_that_ends_early_is_told_with_its_last_words(tmp_path: Path) -> None:
    """One line says how it ended, what it said last and where the log is."""
    log = tmp_path / "child.log"
    log.write_text("an older run\n")
    child = Child("thing", [sys.executable, "-c", "print('the disk is full'); raise SystemExit(3)"], log_path=log)
    while child.status is None:
        time.sleep(0.01)

    with pytest.raises(StackError) as caught:
        child.check_running()

    assert f"thing exited with status 3: the disk is full (log: {log})" == str(caught.value)


def test_child_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    """A missing program is named, whoever was to start it."""

    def start() -> None:
        child = Child("thing", ["/no/such/program"], log_path=tmp_path / "child.log")
        while True:
            child.check_running()
            time.sleep(0.01)

    with pytest.raises(StackError, match="/no/such/program"):
        start()


def test_child_deaf_to_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    """Stopping always ends, and the status tells how."""
    child = Child("thing", STUBBORN, log_path=tmp_path / "child.log", grace_seconds=0.2)
    while "deaf" not in child.last_words():
        time.sleep(0.01)

    assert -signal.SIGKILL == child.stop_sync()


async def test_child_stop_cancelled_leaves_no_process(tmp_path: Path) -> None:
    """Whoever cancels a stop gets a dead child, not a forgotten one."""
    child = Child("thing", STUBBORN, log_path=tmp_path / "child.log", grace_seconds=60)
    while "deaf" not in child.last_words():
        await trio.sleep(0.01)
    with trio.move_on_after(0.1):
        await child.stop()

    assert -signal.SIGKILL == child.status


def test_a_program_that_ends_by_itself_does_not_hear_ctrl_c() -> None:
    """Nor that the terminal is closed: what either ended would be told as a failure of the program."""
    done = processes.run_to_end([sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"])

    assert "True\n" == done.stdout


def test_child_has_its_own_session(tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches only us: we stop things in order."""
    child = Child("thing", SLEEP, log_path=tmp_path / "child.log")
    try:
        assert child.pid == os.getsid(child.pid)
    finally:
        child.kill()


async def test_child_refuses_a_thread_that_goes_away(tmp_path: Path) -> None:
    """The kernel would end it with the worker thread of Trio's that started it, ten idle seconds later."""
    with pytest.raises(RuntimeError, match="thing would end with this thread"):
        await trio.to_thread.run_sync(lambda: Child("thing", SLEEP, log_path=tmp_path / "child.log"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_child_ends_when_we_are_killed(tmp_path: Path) -> None:
    """Even SIGKILL of the parent leaves nothing running."""
    program = f"""
import os, signal, sys
from pathlib import Path
from traksense.tools.stack import Child
child = Child("thing", {SLEEP!r}, log_path=Path({str(tmp_path / "child.log")!r}))
print(child.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()

        assert gone(pid)


async def test_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    """The deadline ends the start with one line, and the process with it."""

    class Silent(Server):
        ready_seconds = 0.3

        def _prepare(self) -> None: ...

        def _launch(self) -> Child:
            return Child("silent", SLEEP, log_path=self.log_path)

        def _answers(self) -> bool:
            return False

    silent = Silent("silent", tmp_path, 0)
    with pytest.raises(StackError, match=r"silent did not answer on 127\.0\.0\.1:\d+ within 0 s"):
        await silent.start()

    assert not silent.running


# --- the brokers --------------------------------------------------------------------------------------------


async def test_broker_starts_stops_and_starts_again(tmp_path: Path, kind: Any) -> None:
    """Under the same port, whatever ended it; and it is gone afterwards."""
    with trio.fail_after(HANG_SECONDS):
        async with open_broker(tmp_path, kind=kind) as process:
            url, pids = process.url, [process.pid]
            await process.restart()
            pids.append(process.pid)
            process.kill()
            assert not process.running
            await process.start()
            pids.append(process.pid)
            await process.stop()
            await process.start()

        assert url == process.url
        assert len(pids) == len(set(pids))
        assert not process.running


def test_broker_keeps_an_offline_queue_and_redelivers_in_order(tmp_path: Path, kind: Any) -> None:
    """A persistent session gets what it did not acknowledge and what came since, in order; over 1,000."""
    with BrokerProcess(tmp_path, kind=kind) as process:
        reader = Peer(process, "reader", keep=True, acknowledge=False)
        assert [1] == reader.subscribe("traksense/+/+/+/telem")
        sender = Peer(process, "sender")
        sender.publish("traksense/a/b/c/telem", numbers(0, 50))
        assert reader.turn_until(lambda: len(reader.messages) == 50)
        for message in reader.messages[:10]:
            reader.acknowledge(message)
        reader.turn_until(lambda: False, 0.2)
        reader.vanish()
        sender.publish("traksense/a/b/c/telem", numbers(50, 3000))

        reader = Peer(process, "reader", keep=True)

        assert reader.session_present
        assert reader.turn_until(lambda: len(reader.messages) >= 2990)
        assert numbers(10, 3000) == reader.payloads


def test_broker_takes_payloads_larger_than_we_accept(tmp_path: Path, kind: Any) -> None:
    """So that it is traksense that judges them."""
    payload = bytes(3 * 1024 * 1024)
    with BrokerProcess(tmp_path, kind=kind) as process:
        peer = Peer(process, "peer")
        peer.subscribe("large")
        peer.publish("large", [payload])

        assert peer.turn_until(lambda: bool(peer.messages))
        assert [payload] == peer.payloads


def test_broker_with_users_admits_only_them(tmp_path: Path, kind: Any) -> None:
    """A right password, a wrong one, and none."""
    options = BrokerOptions(users={"fleet": 'p"ss word', "other": "x"})
    with BrokerProcess(tmp_path, kind=kind, options=options) as process:
        right = Peer(process, "right", user=("fleet", 'p"ss word'))
        wrong = Peer(process, "wrong", user=("fleet", "guess"))
        none = Peer(process, "none")

    refused = {"mosquitto": "Not authorized", "iotcore": None}[kind]
    assert "Success" == right.answer
    assert refused == wrong.answer
    assert refused == none.answer


def test_broker_with_tls_asks_for_a_certificate_when_told(tmp_path: Path, kind: Any) -> None:
    """The TLS listener works, and mutual TLS keeps strangers out."""
    authority = trustme.CA()
    files = TlsFiles(
        ca=tmp_path / "ca.pem",
        cert=tmp_path / "cert.pem",
        key=tmp_path / "key.pem",
        require_certificate=kind == "mosquitto",
    )
    authority.cert_pem.write_to_path(files.ca)
    ours = authority.issue_cert("localhost")
    ours.private_key_pem.write_to_path(files.key)
    for number, blob in enumerate(ours.cert_chain_pems):
        blob.write_to_path(files.cert, append=number > 0)
    stranger = ssl.create_default_context(cafile=os.fspath(files.ca))
    known = ssl.create_default_context(cafile=os.fspath(files.ca))
    authority.issue_cert("device@example.org").configure_cert(known)

    with BrokerProcess(tmp_path / "broker", kind=kind, options=BrokerOptions(tls=files)) as process:
        assert "Success" == Peer(process, "known", tls=known).answer
        if files.require_certificate:
            with contextlib.suppress(OSError):
                assert Peer(process, "stranger", tls=stranger).answer is None
        else:
            assert "Success" == Peer(process, "stranger", tls=stranger).answer


def test_iotcore_refuses_to_pretend_mutual_tls(tmp_path: Path) -> None:
    """Its listener admits clients without a certificate even with a `capath`: so it is not offered."""
    files = TlsFiles(
        ca=tmp_path / "ca.pem", cert=tmp_path / "cert.pem", key=tmp_path / "key.pem", require_certificate=True
    )

    with pytest.raises(StackError, match="iotcore does not ask clients for certificates"):
        BrokerProcess(tmp_path, kind="iotcore", options=BrokerOptions(tls=files))


@pytest.mark.usefixtures("mosquitto")
def test_mosquitto_sessions_survive_a_restart(tmp_path: Path) -> None:
    """SIGTERM saves what is queued; another run on the same directory finds it."""
    with BrokerProcess(tmp_path, kind="mosquitto") as process:
        Peer(process, "reader", keep=True).subscribe("queue")
        Peer(process, "sender").publish("queue", numbers(0, 10))
    with BrokerProcess(tmp_path, kind="mosquitto") as process:
        reader = Peer(process, "reader", keep=True)

        assert reader.session_present
        assert reader.turn_until(lambda: len(reader.messages) == 10)


@pytest.mark.usefixtures("mosquitto")
def test_mosquitto_that_refuses_its_file_says_why(tmp_path: Path) -> None:
    """Its own words reach the user, on one line."""
    options = BrokerOptions(extra_config=("no_such_option 1",))

    with pytest.raises(StackError, match=r"mosquitto exited with status .*no_such_option") as caught:
        BrokerProcess(tmp_path, kind="mosquitto", options=options).start_sync()

    assert "\n" not in str(caught.value)


def test_iotcore_limits_are_as_documented(tmp_path: Path) -> None:
    """A new release that changes one of them should change the table in `broker`, and perhaps the choice."""
    with BrokerProcess(tmp_path, kind="iotcore") as process:
        reader = Peer(process, "reader", keep=True, acknowledge=False, receive_maximum=5)
        reader.subscribe("topic")
        Peer(process, "sender").publish("topic", numbers(0, 300))
        reader.turn_until(lambda: len(reader.messages) == 100)
        reader.turn_until(lambda: len(reader.messages) > 100, 0.5)
        window = len(reader.messages)
        curious = Peer(process, "curious")
        curious.subscribe("$SYS/#")
        process.restart_sync()
        again = Peer(process, "reader", keep=True)

    assert 100 == window
    assert curious.ended
    assert not again.session_present


@pytest.mark.usefixtures("mosquitto")
def test_broker_auto_prefers_mosquitto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel's broker is the fallback, and without either the user is told what to install."""
    kinds = [BrokerProcess(tmp_path).kind]
    monkeypatch.setattr(broker, "find_mosquitto", lambda: None)
    kinds.append(BrokerProcess(tmp_path).kind)
    with pytest.raises(StackError, match="Mosquitto is missing: install it"):
        BrokerProcess(tmp_path, kind="mosquitto")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(StackError, match=r"no MQTT broker here: install it .* or pip install"):
        BrokerProcess(tmp_path)

    assert ["mosquitto", "iotcore"] == kinds


@pytest.mark.usefixtures("mosquitto")
def test_broker_files_with_passwords_are_private(tmp_path: Path) -> None:
    """Nobody else on the machine reads them."""
    with BrokerProcess(tmp_path, kind="mosquitto", options=BrokerOptions(users={"fleet": "secret"})):
        modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("passwords", "mosquitto.conf")}
        text = (tmp_path / "passwords").read_text(encoding="utf-8")

    assert {0o600} == modes
    assert "secret" not in text


# --- the database -------------------------------------------------------------------------------------------


@pytest.mark.every_postgres
def test_postgres_is_durable_and_private(postgres_server: PostgresProcess) -> None:
    """What is committed is on the disk, and only this machine's holders of the password get in."""
    expected = {
        "fsync": "on",
        "synchronous_commit": "on",
        "listen_addresses": "127.0.0.1",
        "server_encoding": "UTF8",
        "timezone": "UTC",
    }

    assert expected == {name: fetch(postgres_server.dsn, f"SHOW {name}") for name in expected}
    assert fetch(postgres_server.dsn, "SHOW server_version").startswith(postgres_server.version)
    with pytest.raises(asyncpg.InvalidPasswordError):
        fetch(f"postgresql://postgres:guess@{postgres_server.host}:{postgres_server.port}/postgres", "SELECT 1")


@pytest.mark.every_postgres
def test_postgres_database_is_copied_from_its_template(
    postgres_server: PostgresProcess, unique: Callable[[str], str]
) -> None:
    """Each copy is its own; a name is not taken twice by accident."""
    template, copy = unique("template"), unique('odd"name')
    dsn = postgres_server.create_database_sync(template)
    fetch(dsn, "CREATE TABLE t AS SELECT 7 AS n")
    copied = fetch(postgres_server.create_database_sync(copy, template), "SELECT n FROM t")
    with pytest.raises(StackError, match="exists in"):
        postgres_server.create_database_sync(copy)
    again = postgres_server.create_database_sync(copy, exist_ok=True)
    postgres_server.drop_database_sync(copy)
    postgres_server.drop_database_sync(template)

    assert 7 == copied
    assert again.endswith(copy)


async def test_postgres_keeps_its_data_through_restart_kill_and_the_next_run(
    stack_directory: Path, unique: Callable[[str], str]
) -> None:
    """Committed rows survive all of them; port, password and databases stay."""
    directory = stack_directory / unique("postgres")
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres(directory) as server:
            dsn = await server.create_database("traksense")
            await trio.to_thread.run_sync(fetch, dsn, "CREATE TABLE t (n int)")
            for number in range(3):
                await trio.to_thread.run_sync(fetch, dsn, f"INSERT INTO t VALUES ({number})")
                await server.restart()
            server.kill()
            assert not server.running
            await server.start()
            assert 3 == await trio.to_thread.run_sync(fetch, dsn, "SELECT count(*) FROM t")
        async with open_postgres(directory) as server:
            dsn = await server.create_database("traksense", exist_ok=True)
            assert 3 == await trio.to_thread.run_sync(fetch, dsn, "SELECT count(*) FROM t")


def test_postgres_starts_after_a_crash_that_left_a_busy_backend(
    stack_directory: Path, unique: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that computes does not notice the death of its postmaster, and holds the shared memory."""
    monkeypatch.setattr(postgres, "_ORPHAN_SECONDS", 0.3)
    with PostgresProcess(stack_directory / unique("postgres")) as server:
        busy = threading.Thread(target=_compute_until_killed, args=(server.dsn,))
        busy.start()
        while not fetch(server.dsn, RUNNING_BUSY):
            time.sleep(0.02)
        server.kill()
        server.start_sync()
        busy.join(10)

        assert not busy.is_alive()
        assert 1 == fetch(server.dsn, "SELECT 1")


def _compute_until_killed(dsn: str) -> None:
    with contextlib.suppress(asyncpg.PostgresError, OSError):
        fetch(dsn, BUSY)


def test_postgres_starts_although_another_process_has_the_old_number(
    stack_directory: Path, unique: Callable[[str], str]
) -> None:
    """A stale postmaster.pid that names some innocent live process, as happens in containers."""
    directory = stack_directory / unique("postgres")
    with PostgresProcess(directory) as server:
        server.kill()
        pid_file = directory / "cluster" / "postmaster.pid"
        lines = pid_file.read_text(encoding="ascii").split("\n")
        pid_file.write_text("\n".join([str(os.getppid()), *lines[1:]]), encoding="ascii")
        server.start_sync()

        assert 1 == fetch(server.dsn, "SELECT 1")


def test_postgres_leaves_a_cluster_alone_that_another_run_is_making(
    stack_directory: Path, unique: Callable[[str], str]
) -> None:
    """It would take away what the other one's initdb has written so far."""
    directory = stack_directory / unique("making")
    begun = directory / "cluster.new" / "begun"
    begun.parent.mkdir(parents=True)
    begun.touch()
    other = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)

        with pytest.raises(StackError, match=f"another run is starting in {directory}: stop it, or take another"):
            PostgresProcess(directory).start_sync()
    finally:
        os.close(other)

    assert begun.exists()


def test_postgres_runs_where_a_directory_cannot_be_locked(own_postgres: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS wants a file that is open for writing. Source: flock(2)."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    own_postgres()


def test_postgres_refuses_a_directory_in_use(own_postgres: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs on one directory would be a disaster; the second is told, the first is not disturbed."""
    monkeypatch.setattr(postgres, "_ORPHAN_SECONDS", 0.1)
    first = own_postgres()

    with pytest.raises(StackError, match=rf"PostgreSQL \(pid {first.pid}\) runs on .* already"):
        PostgresProcess(first.directory).start_sync()

    assert 1 == fetch(first.dsn, "SELECT 1")


def test_postgres_waits_for_the_end_of_an_abandoned_run(own_postgres: Any) -> None:
    """A server whose parent was killed is shutting down when the next run comes."""
    first = own_postgres()
    os.kill(first.pid, signal.SIGINT)

    with PostgresProcess(first.directory) as second:
        assert 1 == fetch(second.dsn, "SELECT 1")


def test_postgres_refuses_another_major_version(own_postgres: Any) -> None:
    """Before anything is started, with both versions named."""
    server = own_postgres()
    other = [bindir for bindir in system_bindirs() if bindir != server.bindir and str(server.major) not in bindir.parts]
    if not other:
        pytest.skip("this machine has only one PostgreSQL")
    server.stop_sync()

    with pytest.raises(StackError, match=rf"was made by PostgreSQL {server.major}, but .* has \d+"):
        PostgresProcess(server.directory, bindir=other[0])


def test_postgres_that_refuses_a_setting_says_why(stack_directory: Path, unique: Callable[[str], str]) -> None:
    """Its own words reach the user, on one line."""
    with pytest.raises(StackError, match=r"postgres exited with status 1: .*no_such_setting") as caught:
        PostgresProcess(stack_directory / unique("postgres"), settings={"no_such_setting": "1"}).start_sync()

    assert "\n" not in str(caught.value)


def test_postgres_password_is_private(own_postgres: Any) -> None:
    """Nobody else on the machine reads it."""
    server = own_postgres()

    assert 0o600 == stat.S_IMODE((server.directory / "password").stat().st_mode)


@needs_root
def test_postgres_as_root_moves_out_of_a_private_directory(tmp_path: Path) -> None:
    """Its user cannot pass a private parent: the data go elsewhere, always there, and we are told."""
    tmp_path.chmod(0o700)
    directory = tmp_path / "state"
    server = PostgresProcess(directory)
    try:
        with server:
            assert 1 == fetch(server.dsn, "SELECT 1")
        assert not directory.exists()
        assert server.note is not None
        assert str(directory) in server.note
        assert str(server.directory) in server.note
        assert PostgresProcess(directory).directory == server.directory
    finally:
        subprocess.run(["rm", "-rf", server.directory], check=True)


@needs_root
def test_postgres_as_root_copies_programs_that_its_user_cannot_run(
    stack_directory: Path, unique: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment below /root works all the same."""
    found = embedded_bindir()
    assert found is not None
    package = found.parents[1]
    tmp_path.chmod(0o700)
    for name in (package.name, f"{package.name}.libs"):
        subprocess.run(["cp", "-r", package.with_name(name), tmp_path], check=True)
    private = tmp_path / package.name / "pginstall" / "bin"
    monkeypatch.setattr(postgres_programs, "embedded_bindir", lambda: private)

    with PostgresProcess(stack_directory / unique("postgres"), bindir=private) as server:
        assert server.directory in server.bindir.parents
        assert 1 == fetch(server.dsn, "SELECT 1")


# --- the service --------------------------------------------------------------------------------------------

FAKE_SERVICE = """
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("METRICS_HOST", os.environ.get("METRICS_HOST"), os.environ.get("MQTT_CLIENT_ID"), flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        ready = Handler.asked > 2
        body = b'{"ready": false, "reasons": ["database: away"]}'
        if self.path == "/metrics":
            body = b'# TYPE ingest_errors_total counter\\n'
            body += b'ingest_errors_total{reason="bad"} 3\\ningest_errors_total{reason="worse"} 4\\n'
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(os.environ["METRICS_PORT"])), Handler).serve_forever()
"""


async def test_service_is_watched_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not ready, ready, scraped, ended; and our own environment does not configure it."""
    monkeypatch.setenv("MQTT_CLIENT_ID", "someone-elses")
    command = [sys.executable, "-c", FAKE_SERVICE]
    with trio.fail_after(HANG_SECONDS):
        async with open_service({"METRICS_PORT": "0"}, tmp_path, command=command) as service:
            while (before := await service.readiness())[0] == 0:
                await trio.sleep(0.02)
            await service.wait_ready()
            metrics = await service.metrics()
            service.terminate()

            assert 0 == await service.wait()
    assert before == (503, {"ready": False, "reasons": ["database: away"]})
    assert 3.0 == metrics.value("ingest_errors_total", reason="bad")
    assert 7.0 == metrics.total("ingest_errors_total")
    assert 0.0 == metrics.value("ingest_points_total")
    assert "METRICS_HOST 127.0.0.1 None" == service.log_path.read_text(encoding="utf-8").splitlines()[0]


async def test_service_that_ends_before_it_is_ready_is_told(tmp_path: Path) -> None:
    """With its exit status and its last words, not after the whole deadline."""
    command = [sys.executable, "-c", "print('MQTT_QOS: bad number'); raise SystemExit(2)"]
    with trio.fail_after(HANG_SECONDS):
        async with open_service({}, tmp_path, command=command) as service:
            with pytest.raises(StackError, match="traksense exited with status 2: MQTT_QOS: bad number"):
                await service.wait_ready()


async def test_service_is_stopped_on_the_way_out(tmp_path: Path) -> None:
    """Whatever happens inside."""
    with trio.fail_after(HANG_SECONDS), pytest.raises(LookupError):
        async with open_service({}, tmp_path, command=SLEEP) as service:
            raise LookupError

    assert -signal.SIGTERM == service.status


def test_metrics_are_read_by_name_and_labels() -> None:
    """As prometheus_client writes them."""
    samples = parse_metrics('# TYPE x counter\nx_total{b="2",a="1"} 5.0\n')

    assert samples == {("x_total", (("a", "1"), ("b", "2"))): 5.0}
