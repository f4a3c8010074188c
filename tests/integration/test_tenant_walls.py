from __future__ import annotations

import psycopg
import pytest
from schema_servers import PRIVATE_TABLES, PUBLIC_RELATIONS, Database, user_of

pytest_plugins = ("schema_fixtures",)

TENANTS = ("acme", "bravo")
ROW_SECURED = (
    "public.cmd_ack",
    "public.device_event",
    "public.ingest_errors",
    "traksense.device",
    "traksense.meta",
    "traksense.series",
    "traksense.tenant",
    "traksense.tenant_retention",
)
PRIVATE_FUNCTIONS = ("partition_ranges()", "ensure_partitions(now(), now())")


def fill(database: Database) -> None:
    """Give each tenant one row in every relation; both have devices of the same name."""
    database.run("SELECT traksense.ensure_partitions('2026-01-01', '2026-01-02')")
    for number, tenant in enumerate(TENANTS, 1):
        series = database.add_series(tenant, "device", "temperature", "Cel")
        database.run(
            f"INSERT INTO traksense.meta (tenant_id, digest, doc)"
            f" VALUES ('{tenant}', decode(md5('{tenant}'), 'hex'), '{{\"of\": \"{tenant}\"}}')",
            f"INSERT INTO traksense.measure (series_id, meta_id, ts, v_num)"
            f" SELECT {series}, meta_id, '2026-01-01 00:00:01+00', {number} FROM traksense.meta"
            f" WHERE tenant_id = '{tenant}'",
            f"INSERT INTO public.cmd_ack (tenant_id, site_id, device_id, cmd_id, ok, payload)"
            f" VALUES ('{tenant}', 'site', 'device', 'command', true, '{{}}')",
            f"INSERT INTO public.device_event (tenant_id, site_id, device_id, event_id, event_type, ts)"
            f" VALUES ('{tenant}', 'site', 'device', 'event', 'boot', now())",
            f"INSERT INTO public.ingest_errors (tenant_id, topic, payload, reason, digest)"
            f" VALUES ('{tenant}', 'topic', 'x', 'parse_error', decode(md5('{tenant}'), 'hex'))",
        )
    database.run(
        "INSERT INTO public.ingest_errors (topic, payload, reason, digest)"
        " VALUES ('topic', 'x', 'invalid_topic', decode(md5(''), 'hex'))",
        "SELECT traksense.mark_dirty('2026-01-01', '2026-01-02')",
    )
    database.aggregate()


@pytest.fixture
def filled(owned: Database) -> tuple[Database, str]:
    """A database with two tenants, owned by a superuser and by a plain role, and an application's DSN."""
    fill(owned)
    return owned, owned.create_app_role()


def seen(database: Database, dsn: str, relation: str, tenant: str | None) -> list[str | None]:
    """The tenants whose rows a session finds in a relation."""
    rows = database.rows(f"SELECT tenant_id FROM {relation} ORDER BY 1", dsn=dsn, tenant=tenant)
    return [row[0] for row in rows]


@pytest.mark.parametrize("tenant", [*TENANTS, "nobody", "", None])
def test_application_sees_its_tenant_only(filled: tuple[Database, str], tenant: str | None) -> None:
    """Through every public relation a session sees the tenant that it named, and nothing if it named none."""
    database, app = filled
    expected = [tenant] if tenant in TENANTS else []

    for relation in PUBLIC_RELATIONS:
        assert (relation, expected) == (relation, seen(database, app, relation, tenant))


def test_operator_sees_all(filled: tuple[Database, str]) -> None:
    """The owner and the superuser see every tenant, also after they have named one."""
    database, _ = filled

    for dsn in (database.dsn, database.admin):
        for tenant in (None, "acme"):
            for relation in PUBLIC_RELATIONS:
                expected = [*TENANTS, None] if relation == "ingest_errors" else [*TENANTS]
                assert (relation, expected) == (relation, seen(database, dsn, relation, tenant))


@pytest.mark.parametrize(
    ("membership", "sees_all"), [("INHERIT", True), ("NOINHERIT", False)], ids=["inherits", "does-not"]
)
def test_members_of_owner_are_operators(bare: Database, membership: str, sees_all: bool) -> None:
    """Whoever has the owner's rights is an operator; a member that must SET ROLE first becomes one by doing so."""
    owner = bare.create_role("owner")
    name = psycopg.conninfo.conninfo_to_dict(bare.dsn)["dbname"]
    bare.run(f'ALTER DATABASE "{name}" OWNER TO {user_of(owner)}')
    database = Database(owner, bare.admin, bare.server, bare.roles)
    database.migrate()
    fill(database)
    member = bare.create_role("member", membership)
    bare.run(f"GRANT {user_of(owner)} TO {user_of(member)}")
    bare.run(f"GRANT SELECT ON public.ts_measure, public.cmd_ack TO {user_of(member)}", dsn=owner)

    for relation in ("ts_measure", "cmd_ack"):
        assert (list(TENANTS) if sees_all else []) == seen(database, member, relation, None)
        with psycopg.connect(member, autocommit=True) as connection:
            connection.execute(f"SET ROLE {user_of(owner)}")
            rows = connection.execute(f"SELECT tenant_id FROM {relation} ORDER BY 1").fetchall()
        assert [(tenant,) for tenant in TENANTS] == rows


def test_application_cannot_use_the_private_schema(filled: tuple[Database, str]) -> None:
    """No table and no function of the private schema can be named by an application."""
    database, app = filled

    for what in (*PRIVATE_TABLES, *PRIVATE_FUNCTIONS):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for schema traksense"):
            database.rows(f"SELECT * FROM traksense.{what}", dsn=app)


def test_schema_usage_alone_opens_nothing(filled: tuple[Database, str]) -> None:
    """Even with USAGE on the private schema, granted by mistake, its tables and working functions stay shut."""
    database, app = filled
    database.run(f"GRANT USAGE ON SCHEMA traksense TO {user_of(app)}")

    for what in (*PRIVATE_TABLES, *PRIVATE_FUNCTIONS):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.rows(f"SELECT * FROM traksense.{what}", dsn=app)


def test_dictionaries_have_walls_of_their_own(filled: tuple[Database, str]) -> None:
    """A role that may read the dictionaries still sees the named tenant's rows only."""
    database, app = filled
    database.run(f"GRANT USAGE ON SCHEMA traksense TO {user_of(app)}")
    for relation in ("tenant", "device", "series", "meta"):
        database.run(f"GRANT SELECT ON traksense.{relation} TO {user_of(app)}")
        assert ["bravo"] == seen(database, app, f"traksense.{relation}", "bravo")
        assert [] == seen(database, app, f"traksense.{relation}", None)


def test_row_security_is_enabled_and_forced(owned: Database) -> None:
    """Every table with a tenant_id has row security that binds its owner too."""
    rows = owned.rows(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE a.attname = 'tenant_id' AND c.relkind IN ('r', 'p')"
        " AND c.relrowsecurity AND c.relforcerowsecurity AND n.nspname IN ('public', 'traksense') ORDER BY 1"
    )
    unsecured = owned.rows(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE a.attname = 'tenant_id' AND c.relkind IN ('r', 'p')"
        " AND NOT (c.relrowsecurity AND c.relforcerowsecurity) AND n.nspname IN ('public', 'traksense')"
    )

    assert sorted(name.removeprefix("public.") for name in ROW_SECURED) == sorted(row[0] for row in rows)
    assert [] == unsecured


def test_views_are_security_barriers(migrated: Database) -> None:
    """Every public view is a security barrier."""
    rows = migrated.rows(
        "SELECT relname FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace"
        " AND reloptions @> '{security_barrier=true}' ORDER BY 1"
    )

    views = ["device_status", "latest", "ts_measure", "ts_measure_1h", "ts_measure_1m", "ts_measure_5m"]
    assert views == [row[0] for row in rows]


@pytest.mark.parametrize("relation", PUBLIC_RELATIONS)
def test_leaky_function_sees_no_foreign_row(filled: tuple[Database, str], relation: str) -> None:
    """A cheap function with a side effect, put into the condition, is never given another tenant's row."""
    database, app = filled
    database.run(f"CREATE SCHEMA attic AUTHORIZATION {user_of(app)}", dsn=database.admin)
    database.run(
        "CREATE FUNCTION attic.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$"
        " BEGIN RAISE NOTICE '%', $1; RETURN true; END $$",
        dsn=app,
    )
    notices: list[str | None] = []
    with database.connect(app) as connection:
        connection.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary))
        connection.execute("SET app.tenant_id = 'acme'")
        connection.execute(f"SELECT * FROM {relation} WHERE attic.leak(tenant_id)").fetchall()

    assert ["acme"] == notices


def test_view_shows_no_foreign_meta(filled: tuple[Database, str]) -> None:
    """A row that refers to another tenant's meta object, by whatever fault, does not show it."""
    database, app = filled
    foreign = database.value("SELECT meta_id FROM traksense.meta WHERE tenant_id = 'bravo'")
    own = database.value("SELECT series_id FROM traksense.series WHERE tenant_id = 'acme'")
    database.run(f"UPDATE traksense.measure SET meta_id = {foreign} WHERE series_id = {own}")

    assert [("acme", None)] == database.rows("SELECT tenant_id, meta FROM ts_measure", dsn=app, tenant="acme")


def test_writes_are_walled_too(filled: tuple[Database, str]) -> None:
    """A role that may write cannot write, change or remove a row of another tenant than the one named."""
    database, app = filled
    database.run(f"GRANT INSERT, UPDATE, DELETE ON public.device_event TO {user_of(app)}")
    insert = "INSERT INTO device_event VALUES ('{}', 'site', 'device', 'new', 'boot', now())"
    with database.connect(app) as connection:
        connection.execute("SET app.tenant_id = 'acme'")
        connection.execute(insert.format("acme"))
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="violates row-level security policy"):
            connection.execute(insert.format("bravo"))
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="violates row-level security policy"):
            connection.execute("UPDATE device_event SET tenant_id = 'bravo'")
        deleted = connection.execute("DELETE FROM device_event").rowcount

    assert 2 == deleted
    assert [("bravo",)] == database.rows("SELECT tenant_id FROM device_event")


def test_tenant_can_be_set_for_one_transaction(filled: tuple[Database, str]) -> None:
    """SET LOCAL names the tenant until the end of the transaction, as a pooler in transaction mode needs it."""
    _, app = filled
    with psycopg.connect(app) as connection:
        connection.execute("SET LOCAL app.tenant_id = 'acme'")
        during = connection.execute("SELECT tenant_id FROM ts_measure").fetchall()
        connection.commit()
        after = connection.execute("SELECT tenant_id FROM ts_measure").fetchall()

    assert ([("acme",)], []) == (during, after)


def test_prepared_statement_follows_the_setting(filled: tuple[Database, str]) -> None:
    """A statement prepared for one tenant shows the other's rows once the setting has changed."""
    database, app = filled
    found = []
    with database.connect(app) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        connection.execute("PREPARE p AS SELECT tenant_id FROM ts_measure UNION ALL SELECT tenant_id FROM cmd_ack")
        for tenant in ("acme", "bravo", ""):
            connection.execute("SELECT set_config('app.tenant_id', %s, false)", (tenant,))
            found.append(connection.execute("EXECUTE p").fetchall())

    assert [[("acme",)] * 2, [("bravo",)] * 2, []] == found


def test_last_characters_of_unicode_are_visible_to_operators(owned: Database) -> None:
    """The range that an operator sees has no end below a tenant's longest and last possible name."""
    last = chr(0x10FFFF) * 128
    owned.run("SELECT traksense.ensure_partitions('2026-01-01', '2026-01-02')")
    series = owned.add_series(last, "device", "point")
    owned.run(f"INSERT INTO traksense.measure (series_id, ts, v_num) VALUES ({series}, '2026-01-01 12:00+00', 1)")

    assert [(last,)] == owned.rows("SELECT tenant_id FROM ts_measure")
    assert [(last,)] == owned.rows("SELECT tenant_id FROM ts_measure", dsn=owned.create_app_role(), tenant=last)
