"""Proves that nothing is lost and nothing doubled, by trying hard to make it happen.

    schedule   what goes wrong and when, from a seed          messages   what is published, and what has to come of it
    publishing publishes, and knows what became of it         replicas   one service or several, each with a shard
    stage      broker, database, service, breakable links     servers    the primary and its synchronous standby
    inject     does what the schedule says, with the help of database_faults, operators (and acts, what they explain)
               and reader
    saboteur   the service with kill points (sabotage), a clock that can be wrong and an adapter of its own (plain)
    keeper     restarts it, as an init system would           witness    what went over the wire, in which order
    watch      ledger and promises, while it runs             resume     how long it stops after each fault
    audit      what the broker still owes at the end          oracle     compares message by message: the verdict
    run        one run of all that                            report     tells people and machines

What it cannot show: power failure (nothing here loses what the operating system holds), a disk that lies, more than one
broker, TimescaleDB (its embedded PostgreSQL has none).
"""
