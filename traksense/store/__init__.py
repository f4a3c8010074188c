"""PostgreSQL and TimescaleDB: the only asyncio-flavoured code in traksense.

Every database transaction is one asyncio coroutine, called once from Trio (`postgres.PostgresStore` is that border).
asyncpg's exceptions are translated there, by the table in `sqlstate`, and do not leave this package.

    sqlstate     whose fault an error is
    dictionary   names to numbers: series, meta; first sight registers in bulk
    partitions   which instants have a place in the measurements
    rows         deliveries to rows
    transaction  one batch, one COMMIT
    pool         connections, and the checks before the first is used
    postgres     the store, start-up checks, and the border to Trio
    migrate      the schema's versions; roles, for whom it is
    sessions     the broker sessions that we have had
    rollup       aggregates on plain PostgreSQL
    policy, lifecycle, maintenance    how long data live, and who sees to it
    connection, dead_letters, tenant_probe    what the commands need
"""
