"""Which names in the environment are misspelt ones of ours, and which are other software's."""

from __future__ import annotations

import pytest

from traksense import misspelt
from traksense.config import load, variables
from traksense.errors import ConfigError
from traksense.store import policy
from traksense.tools.check_config import check

SLIPS = {
    # behind a prefix that others use as well
    "METRICS_PROT": "METRICS_PORT",
    "METRICS_POR": "METRICS_PORT",
    "METRICS_HSOT": "METRICS_HOST",
    "LOG_LEVLE": "LOG_LEVEL",
    "LOG_LEVELL": "LOG_LEVEL",
    "LOG_FROMAT": "LOG_FORMAT",
    "LOG_FORMATT": "LOG_FORMAT",
    "DB_POLL_MAX": "DB_POOL_MAX",
    "DB_POOLMAX": "DB_POOL_MAX",
    "DB_POOL_MAXX": "DB_POOL_MAX",
    "DB_POOL_NIN": "DB_POOL_MIN",
    "DB_STATMENT_TIMEOUT": "DB_STATEMENT_TIMEOUT",
    "DB_STATEMENT_TIME_OUT": "DB_STATEMENT_TIMEOUT",
    "DB_ALLOW_UNSAVE": "DB_ALLOW_UNSAFE",
    "DATABASE_URI": "DATABASE_URL",
    "DATABASE_ULR": "DATABASE_URL",
    "DATABASE_URL_FIEL": "DATABASE_URL_FILE",
    # in a prefix that is long enough to be recognised
    "METRIC_PORT": "METRICS_PORT",
    "DATABSE_URL": "DATABASE_URL",
    "DATEBASE_URL": "DATABASE_URL",
    "MQQT_URL": "MQTT_URL",
    "MQT_CLIENT_ID": "MQTT_CLIENT_ID",
    "INJEST_BATCH_SIZE": "INGEST_BATCH_SIZE",
    "INGSET_QUEUE_MAX": "INGEST_QUEUE_MAX",
    "LIFECYLE_RETAIN_RAW": "LIFECYCLE_RETAIN_RAW",
    "LIFCYCLE_COMPRESS_AFTER": "LIFECYCLE_COMPRESS_AFTER",
    # behind a prefix of ours alone, where everything unknown is a fault
    "MQTT_USER": "MQTT_USERNAME",
    "MQTT_PASS": "MQTT_PASSWORD",
    "MQTT_TOPIC": "MQTT_TOPICS",
    "MQTT_CLIENTID": "MQTT_CLIENT_ID",
    "MQTT_KEEP_ALIVE": "MQTT_KEEPALIVE",
    "INGEST_BATCHSIZE": "INGEST_BATCH_SIZE",
    "INGEST_QUEUE_SIZE": "INGEST_QUEUE_BYTES",
    "LIFECYCLE_RETAIN_EVENT": "LIFECYCLE_RETAIN_EVENTS",
    "LIFECYCLE_RETAINRAW": "LIFECYCLE_RETAIN_RAW",
    "LIFECYCLE_COMPRESS_AFTR": "LIFECYCLE_COMPRESS_AFTER",
    "LIFECYCLE_CHUNK_INTERVALL": "LIFECYCLE_CHUNK_INTERVAL",
}

OTHERS = """
    POSTGRES_USER POSTGRES_PASSWORD POSTGRES_PASSWORD_FILE POSTGRES_DB POSTGRES_HOST POSTGRES_PORT POSTGRES_URL
    POSTGRES_INITDB_ARGS POSTGRES_HOST_AUTH_METHOD POSTGRESQL_URL PGDATA PGHOST PGPORT PGUSER PGPASSWORD PGDATABASE
    PGSSLMODE PGOPTIONS PG_MAJOR PG_VERSION
    DB_HOST DB_PORT DB_NAME DB_USER DB_USERNAME DB_PASSWORD DB_PASS DB_DATABASE DB_CONNECTION DB_URL DB_URI DB_TYPE
    DB_ADDR DB_VENDOR DB_SCHEMA DB_SSLMODE DB_SSL_MODE DB_POOL DB_POOL_SIZE DB_POOL_MAX_SIZE DB_POOL_MAX_IDLE
    DB_POOL_TIMEOUT DB_POOL_RECYCLE DB_MAX_POOL_SIZE DB_MAX_CONNS DB_MAX_OPEN_CONNS DB_MAX_IDLE_CONNS DB_TIMEOUT
    DB_STATEMENT_CACHE_SIZE DB_POSTGRESDB_HOST DB2_POOL_MAX MARIADB_ROOT_PASSWORD MONGODB_URL
    DATABASE_HOST DATABASE_PORT DATABASE_NAME DATABASE_USER DATABASE_USERNAME DATABASE_PASSWORD DATABASE_TYPE
    DATABASE_DSN DATABASE_POOL_SIZE DATABASE_SCHEMA SQLALCHEMY_DATABASE_URI
    LOG_CHANNEL LOG_STACK LOG_FILE LOG_DIR LOG_PATH LOG_FORMATTER LOG_LEVEL_ROOT LOG_MODE LOG_JSON LOG_OUTPUT
    LOG_TIMESTAMP LOG_TO_STDOUT LOG_VERBOSITY LOGLEVEL SLOG_LEVEL GLOG_LEVEL RUST_LOG GF_LOG_LEVEL GF_LOG_MODE
    METRICS_ENABLED METRICS_PATH METRICS_ADDR METRICS_ADDRESS METRICS_BIND_ADDRESS METRICS_TOKEN METRICS_USERNAME
    METRICS_TYPE N8N_METRICS EMQX_NODE__NAME EMQX_LOG__CONSOLE__LEVEL EMQX_HOST TIMESCALEDB_TELEMETRY TS_TUNE_MEMORY
    TELEGRAF_CONFIG_PATH NODE_ENV PYTHONUNBUFFERED TZ LANG HOME HOSTNAME PATH PORT HTTP_PROXY NO_PROXY
    LIFECYCLE_SERVICE_HOST LIFECYCLE_PORT_8080_TCP_ADDR MQTT_SERVICE_PORT_MQTT METRICS_SERVICE_HOST
"""


@pytest.mark.parametrize(("name", "meant"), SLIPS.items())
def test_a_misspelt_name_is_a_fault_that_says_what_was_meant(name: str, meant: str) -> None:
    """Wherever the slip is, and whichever part of the configuration the variable belongs to."""
    with pytest.raises(ConfigError) as caught:
        check({name: "1"})

    assert (f"{name}: unknown variable, did you mean {meant}?",) == caught.value.faults


@pytest.mark.parametrize("name", OTHERS.split())
def test_the_names_of_other_software_are_left_alone(name: str) -> None:
    """They are in the environments of the images that stand beside ours."""
    load({name: "1"})
    policy.load({name: "1"})


def test_a_name_like_nothing_is_a_fault_under_a_prefix_of_ours() -> None:
    """It says where all of them are, instead of a guess."""
    known = {*variables(), *policy.variables()}

    assert [
        f"{name}: unknown variable; ops/traksense.env.example has all" for name in ("LIFECYCLE_X", "MQTT_FOO")
    ] == misspelt.faults({"MQTT_FOO": "1", "LIFECYCLE_X": ""}, known, ("MQTT_", "LIFECYCLE_"))


def test_a_name_of_others_is_no_slip_where_the_variable_itself_is_set() -> None:
    """Directly or from a file; and what is empty is not set."""
    known = variables()

    assert [] == misspelt.faults({"DATABASE_URI": "x", "DATABASE_URL": "y"}, known, ())
    assert [] == misspelt.faults({"DATABASE_URI": "x", "DATABASE_URL_FILE": "y"}, known, ())
    assert [] == misspelt.faults({"DATABASE_URI": ""}, known, ())
    assert ["DATABASE_URI: unknown variable, did you mean DATABASE_URL?"] == misspelt.faults(
        {"DATABASE_URI": "x", "DATABASE_URL": ""}, known, ()
    )


def test_a_service_of_kubernetes_is_no_variable() -> None:
    """Kubernetes names them after Services: `mqtt`, `lifecycle`."""
    load({"MQTT_PORT": "tcp://10.0.0.1:1883", "MQTT_PORT_1883_TCP": "tcp://10.0.0.1:1883"})
    policy.load({"LIFECYCLE_PORT": "tcp://10.0.0.1:80"})
