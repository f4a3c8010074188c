"""The witness on the wire: who was given what, who promised what, in which order."""

from __future__ import annotations

from tests.unit.test_prove_frames import packet, publish_packet
from traksense.tools.prove.witness import Connection, Witness

CONNACK_NEW = packet(0x20, b"\x00\x00\x00")
CONNACK_PRESENT = packet(0x20, b"\x01\x00\x00")


def numbered(payload: bytes) -> int | None:
    return int(payload) if payload.isdigit() else None


def puback(*packet_ids: int) -> bytes:
    return b"".join(packet(0x40, packet_id.to_bytes(2, "big")) for packet_id in packet_ids)


def connected(witness: Witness, *, present: bool = True) -> Connection:
    connection = witness.observe()
    connection.from_server(CONNACK_PRESENT if present else CONNACK_NEW)
    return connection


def deliver(connection: Connection, number: int, packet_id: int, *, dup: bool = False) -> None:
    connection.from_server(publish_packet(b"t", str(number).encode(), packet_id=packet_id, dup=dup))


def test_pubacks_in_order_are_noted_and_told() -> None:
    """Each PUBACK counts for the message that its identifier carried on this connection."""
    told: list[int] = []
    witness = Witness(numbered, told.append)
    connection = connected(witness)
    deliver(connection, 5, 1)
    deliver(connection, 6, 2)

    connection.from_client(puback(1, 2))

    assert [5, 6] == told
    assert {5, 6} == witness.acknowledged
    assert 0 == witness.disorder.count


def test_puback_out_of_order_is_disorder() -> None:
    """The second before the first is one fault, the first after it none."""
    witness = Witness(numbered)
    connection = connected(witness)
    deliver(connection, 5, 1)
    deliver(connection, 6, 2)

    connection.from_client(puback(2, 1))

    assert 1 == witness.disorder.count
    assert {5, 6} == witness.acknowledged


def test_puback_for_another_connection_is_disorder_and_acknowledges_nothing() -> None:
    """An identifier of an old connection says nothing on a new one."""
    witness = Witness(numbered)
    deliver(connected(witness), 5, 1)

    connected(witness).from_client(puback(1))

    assert 1 == witness.disorder.count
    assert set() == witness.acknowledged


def test_repeated_packet_identifiers_are_taken_in_order() -> None:
    """Mosquitto repeats identifiers after 65,535: the first one waiting is meant."""
    witness = Witness(numbered)
    connection = connected(witness)
    deliver(connection, 5, 7)
    deliver(connection, 6, 7)

    connection.from_client(puback(7))

    assert {5} == witness.acknowledged
    assert 0 == witness.disorder.count


def test_redeliveries_and_qos_0() -> None:
    """DUP, or a second delivery without it, is a redelivery; QoS 0 and strangers' messages take no number."""
    witness = Witness(numbered)
    first = connected(witness)
    deliver(first, 5, 1)
    first.from_server(publish_packet(b"$SYS/x", b"17", packet_id=0, qos=0))
    first.from_server(publish_packet(b"t", b"stranger", packet_id=2))
    second = connected(witness)
    deliver(second, 5, 1, dup=True)
    deliver(second, 6, 2, dup=True)
    deliver(second, 6, 3)

    assert {5: 2, 6: 2} == dict(witness.delivered)
    assert 3 == witness.redelivered


def test_sessions_that_vanish_and_clean_starts_are_counted() -> None:
    """The first connection may find no session; a later one may not. A service must never ask for a clean start."""
    witness = Witness(numbered)
    connected(witness, present=False)
    connected(witness, present=True)
    connected(witness, present=False).from_client(packet(0x10, b"\x00\x04MQTT\x05\x02\x00\x05\x00\x00\x01c"))

    assert 1 == witness.sessions_lost
    assert 1 == witness.clean_starts
    assert 3 == witness.connections


def test_sessions_are_told_apart_by_client_identifier() -> None:
    """The first connection of each replica may find no session; the second of one of them may not."""
    witness = Witness(numbered)
    for name, present in ((b"a", False), (b"b", False), (b"a", True), (b"b", False)):
        connection = witness.observe()
        connection.from_client(packet(0x10, b"\x00\x04MQTT\x05\x00\x00\x05\x00\x00\x01" + name))
        connection.from_server(CONNACK_PRESENT if present else CONNACK_NEW)

    assert 1 == witness.sessions_lost
    assert {"a", "b"} == witness.known


def test_messages_of_mqtt_3_are_read_as_such() -> None:
    """After a CONNECT of level 4, PUBLISH has no properties."""
    witness = Witness(numbered)
    connection = witness.observe()
    connection.from_client(packet(0x10, b"\x00\x04MQTT\x04\x00\x00\x05\x00\x01c"))
    connection.from_server(packet(0x32, b"\x00\x01t\x00\x0942"))

    assert {42: 1} == dict(witness.delivered)


def test_nonsense_from_the_service_is_a_fault() -> None:
    """A PUBACK without an identifier is not silently skipped."""
    witness = Witness(numbered)

    connected(witness).from_client(packet(0x40, b"\x01"))

    assert 1 == witness.disorder.count
