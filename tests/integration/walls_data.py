"""Two tenants, one of whom must learn nothing of the other: every name and value of the other one contains ZEBRA."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schema_servers import Database

OWN = "acme"
FOREIGN = "zebra corp"
MARK = "zebra"
READERS = ("traksense_app", "traksense_readonly")
DAY = "2026-01-01 00:00+00"

NUMBER = 424242.25
"""A value that only the foreign tenant has, and has often."""


def fill(database: Database) -> None:
    """A day's data of both tenants, analyzed: the foreign names and values are common enough to be in statistics."""
    database.run(f"SELECT traksense.ensure_partitions('{DAY}', '2026-01-02')")
    for tenant, word, number in ((OWN, "own", 1.5), (FOREIGN, MARK, NUMBER)):
        for device in range(4):
            for point in range(3):
                database.add_series(tenant, f"{word} device {device}", f"{word} point {point}", f"{word} unit", word)
        database.run(
            f"INSERT INTO traksense.meta (tenant_id, digest, doc)"
            f" VALUES ('{tenant}', decode(md5('{tenant}'), 'hex'), '{{\"{word}\": \"{word} meta\"}}')",
            f"INSERT INTO traksense.measure (series_id, ts, meta_id, v_num)"
            f" SELECT series_id, timestamptz '{DAY}' + n * interval '1 min', meta_id, {number}"
            f" FROM traksense.series s JOIN traksense.meta USING (tenant_id), generate_series(0, 199) n"
            f" WHERE tenant_id = '{tenant}'",
            f"INSERT INTO traksense.measure (series_id, ts, v_text)"
            f" SELECT series_id, timestamptz '{DAY}' + n * interval '1 min', '{word} text'"
            f" FROM traksense.series s, generate_series(300, 399) n WHERE tenant_id = '{tenant}'",
            f"INSERT INTO public.cmd_ack (tenant_id, site_id, device_id, cmd_id, ok, err, payload)"
            f" SELECT '{tenant}', '{word}', '{word} device 1', '{word} command ' || n, true, '{word} err',"
            f' \'{{"{word}": "{word}"}}\' FROM generate_series(1, 50) n',
            f"INSERT INTO public.device_event (tenant_id, site_id, device_id, event_id, event_type, ts, data)"
            f" SELECT '{tenant}', '{word}', '{word} device 1', '{word} event ' || n, '{word} type', '{DAY}',"
            f' \'{{"{word}": "{word}"}}\' FROM generate_series(1, 50) n',
            f"INSERT INTO public.ingest_errors (tenant_id, topic, payload, reason, detail, digest)"
            f" SELECT '{tenant}', 'traksense/{tenant}/{word}/device/telem', '{word}', '{word} reason', '{word} detail',"
            f" decode(md5('{word}' || n), 'hex') FROM generate_series(1, 50) n",
        )
    database.run(
        "INSERT INTO public.ingest_errors (topic, payload, reason, digest)"
        f" VALUES ('{MARK}', '{MARK}', '{MARK}', decode(md5('nobody'), 'hex'))",
        "UPDATE traksense.device SET last_seen_at = now()",
        f"SELECT traksense.mark_dirty('{DAY}', '2026-01-02')",
    )
    database.aggregate()
    database.run("ANALYZE")
