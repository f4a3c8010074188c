"""Proves that nothing is lost and nothing doubled, by trying hard to make it happen.

    schedule   what goes wrong and when, from a seed          messages   what is published, and what has to come of it
    replicas   one service or several, each with a shard
    stage      broker, database, service, breakable links     inject     does what the schedule says
    saboteur   the service with kill points                   keeper     restarts it, as an init system would
    witness    what went over the wire, in which order        watch      ledger and promises, while it runs
    audit      what the broker still owes at the end          oracle     compares message by message: the verdict
    run        one run of all that                            report     tells people and machines

What it cannot show: power failure (nothing here loses what the operating system holds), a disk that lies, more than one
broker or database node.
"""
