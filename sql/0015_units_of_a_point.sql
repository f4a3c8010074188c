-- traksense, migration 15: what looking a point up costs does not depend on how many units it has come in either.
--
-- A point in another unit is another series. Without the unit in the index, looking one up read all units of the point:
-- a device that made units up was looked up for longer than a statement may take, and its message came again for ever.

DROP INDEX traksense.series_tenant_idx;
CREATE INDEX series_tenant_idx ON traksense.series (tenant_id, device_id, site_id, point_id, unit);

INSERT INTO traksense.schema_version (version, name) VALUES (15, 'units_of_a_point');
