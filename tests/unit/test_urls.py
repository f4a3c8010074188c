"""URLs with passwords in them: read strictly, and never shown."""

from __future__ import annotations

import io
import logging
import os
import traceback
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from traksense import cli
from traksense.config import DatabaseUrl, Secret, load
from traksense.errors import ConfigError
from traksense.log import JsonFormatter, TextFormatter
from traksense.tools.validate.report import Printer
from traksense.tools.validate.run import Options, new_report
from traksense.urls import DATABASE_FORM, ENCODE, MQTT_FORM, ONE_BROKER

if TYPE_CHECKING:
    from collections.abc import Mapping

URLS = {
    "DATABASE_URL": "postgresql://ingest:{}@db.example:5432/telemetry",
    "MQTT_URL": "mqtt://ingest:{}@broker.example:1883",
}
FORMS = {"DATABASE_URL": DATABASE_FORM, "MQTT_URL": MQTT_FORM}


def shown(environ: Mapping[str, str]) -> str:
    """All that is shown of a configuration: the faults with their traceback, or the settings in every way."""
    try:
        settings = load(environ)
    except ConfigError as error:
        said = io.StringIO()
        with redirect_stderr(said):
            cli.report(error)
        return said.getvalue() + "".join(traceback.format_exception(error, chain=True)) + repr(error)
    record = logging.LogRecord("x", logging.INFO, "", 1, "started", None, None)
    record.traksense_database, record.traksense_broker = str(settings.database), str(settings.broker)
    record.traksense_settings = settings
    out = io.StringIO()
    with redirect_stdout(out):
        Printer().begin(new_report(settings, Options(url="http://x", points=1, patience=1, keep=False)).subject)
    texts = [JsonFormatter().format(record), TextFormatter().format(record), out.getvalue(), repr(settings)]
    return "\n".join([*texts, str(settings), f"{settings.database}", f"{settings.password!r}"])


def parts(text: str) -> set[str]:
    """Its substrings of four characters."""
    return {text[at : at + 4] for at in range(len(text) - 3)}


@pytest.mark.parametrize("variable", URLS)
@pytest.mark.parametrize(
    "password",
    [
        "S3cr/slash",
        "S3cr@sign",
        "S3cr#hash",
        "S3cr?mark",
        "S3cr%percent",
        "S3cr%00nul",
        "S3cr%ffbyte",
        "S3cr[et",
        "S3cr et",
        "S3cr\tet",
        "54/321@S3cr",
        "54?S3cr",
        "54#S3cr",
        "5432/S3cr?x",
        "S3cr\u2100et",
    ],
)
def test_password_that_is_not_encoded_is_a_fault(variable: str, password: str) -> None:
    """Exit 2 with the variable and what is right, and nothing of the password."""
    with pytest.raises(ConfigError) as caught:
        load({variable: URLS[variable].format(password)})
    (fault,) = caught.value.faults

    assert fault.startswith(f"{variable}: {FORMS[variable]}")
    assert fault.endswith(ENCODE)
    assert "S3cr" not in fault + "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("DATABASE_URL", "postgresql://i:geheim@h:54x/db"),
        ("DATABASE_URL", "postgresql://i:geheim@h:99999999/db"),
        ("DATABASE_URL", "postgresql://i:geheim@h:0/db"),
        ("DATABASE_URL", "postgresql://i:geheim@h1:5432,h2:x/db"),
        ("DATABASE_URL", "postgresql://i:geheim@h/db?port=geheim"),
        ("DATABASE_URL", "postgresql://i:geheim@h/db?sslmode=geheim"),
        ("DATABASE_URL", "postgresql://i:geheim@h/db?target_session_attrs=geheim"),
        ("DATABASE_URL", "postgresql://i:geheim@[::1/db"),
        ("DATABASE_URL", "i:geheim@h/db"),
        ("MQTT_URL", "mqtt://i:geheim@h:54x"),
        ("MQTT_URL", "mqtt://i:geheim@h:99999999"),
        ("MQTT_URL", "mqtt://i:geheim@h:1883,h2:1883"),
        ("MQTT_URL", "mqtt://i:geheim@a..b"),
        ("MQTT_URL", "geheim"),
    ],
)
def test_url_that_cannot_be_is_a_fault(variable: str, url: str) -> None:
    """A wrong port, a list of brokers, no URL at all: one line, without the password."""
    said = shown({variable: url})

    assert f"traksense: {variable}: " in said
    assert "geheim" not in said


@pytest.mark.parametrize(
    "hosts",
    [
        "h:1883,h:1884",
        "a,b:1883",
        "[::1],127.0.0.1:1883",
        "127.0.0.1,[::1]:1883",
        "[::1]:1883,[::2]:1883",
        "h:1883,mqtt://h:1884",
        "h,",
        "i:geheim@a,b/",
    ],
)
def test_list_of_brokers_is_told_what_does_work(hosts: str) -> None:
    """A name with several addresses, or a proxy: nothing is dropped from the list in silence, nor waited for."""
    with pytest.raises(ConfigError) as caught:
        load({"MQTT_URL": f"mqtt://{hosts}"})

    assert (f"MQTT_URL: {ONE_BROKER}",) == caught.value.faults


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql:///db", "postgresql:///db"),
        ("postgres://u@h/db", "postgresql://u@h/db"),
        ("postgresql+asyncpg://u:p%2F%40@h:1/db?sslmode=require", "postgresql://u:***@h:1/db"),
        ("postgresql://u:p@h1:1,h2:2/db", "postgresql://u:***@h1:1,h2:2/db"),
        ("postgresql://u:p@%2Frun%2Fpostgresql/db", "postgresql://u:***@%2Frun%2Fpostgresql/db"),
        ("postgresql://:geheim@h/db", "postgresql://:***@h/db"),
        ("postgresql://us%40er:geheim:geheim@h/db", "postgresql://us%40er:***@h/db"),
        ("postgresql:///db?host=/run/postgresql&password=geheim", "postgresql://:***@/db"),
        ("postgresql://h/db?user=us%40er&password=geheim", "postgresql://us%40er:***@h/db"),
        ("postgresql://u@h/db?sslpassword=geheim&sslmode=require", "postgresql://u@h/db"),
    ],
)
def test_database_url_as_others_write_it(url: str, place: str) -> None:
    """Hosts, sockets, other programs' schemes; what is shown is where it leads, and as whom."""
    settings = load({"DATABASE_URL": url})

    assert place == str(settings.database)
    assert url.partition("://")[2] == settings.database.dsn.reveal().partition("://")[2]


def test_database_url_that_nobody_read_is_not_shown() -> None:
    """Made by hand rather than from the environment."""
    assert "postgresql://***" == str(DatabaseUrl(Secret("postgresql://i:S3cr/slash@h/db")))


def test_broker_credentials_are_decoded() -> None:
    """What is percent-encoded is what the broker gets."""
    settings = load({"MQTT_URL": "mqtts://us%40er:p%2F%23%25@Broker.Example"})

    assert ("broker.example", 8883) == (settings.broker.host, settings.broker.port)
    assert settings.password is not None
    assert ("us@er", "p/#%") == (settings.username, settings.password.reveal())


@given(password=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=4, max_size=40))
@example(password="i:S3cr/slash@h/db")
@example(password="x@h:5432/db?")
@example(password="/@#?%:[]")
def test_no_part_of_a_password_is_shown(password: str) -> None:
    """In the clear in a URL, in a variable of its own: no four characters in a row appear that are not there anyway."""
    for variable, url in URLS.items():
        ordinary = shown({variable: url.format("0")}) + shown({variable: url.format("/")})
        said = shown({variable: url.format(password)})
        assert not (parts(password) & parts(said)) - parts(ordinary), variable
    ordinary = shown({"MQTT_PASSWORD": "0"})
    assert not (parts(password) & parts(shown({"MQTT_PASSWORD": password}))) - parts(ordinary)


@pytest.mark.parametrize("variable", ["DATABASE_URL", "MQTT_URL", "MQTT_PASSWORD"])
def test_secret_in_the_place_of_its_file_is_not_shown(variable: str) -> None:
    """Somebody gives `_FILE` the secret itself."""
    for value in ("geheim-geheim", "geheim\0geheim", "geheim" * 1000):
        said = shown({f"{variable}_FILE": value})
        assert f"cannot read {variable}_FILE: " in said
        assert "geheim" not in said


@pytest.mark.parametrize("content", [b"DATABASE_URL postgresql://u:geheim@h/d\n", b"X=geheim\xff\n", b"X=geheim\0\n"])
def test_env_file_that_cannot_be_read_is_not_quoted(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """The place of the fault, not the line."""
    file = tmp_path_factory.mktemp("env") / ".env"
    file.write_bytes(content)

    assert 2 == cli.main(["--env-file", os.fspath(file), "shards", "show"])
    said = capsys.readouterr().err
    assert f"traksense: {file}:" in said
    assert "geheim" not in said
