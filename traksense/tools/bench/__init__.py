"""`traksense bench`: how fast, how soon, how large, on this machine, beside what the database alone could do.

    load        the messages, as packets that are ready to send, and the rows that must come of them
    stage       the broker and the database; a database for each run; a checkout's service as a child process
    hose        publishes prepared packets as fast as the broker confirms them, or at a rate
    readings    processor time and memory of processes, from /proc
    tables      what is asked of the database: preparation, timing by commit timestamps, counts
    ceiling     the same rows by COPY alone
    backlog     a session full of messages is drained
    steady      latency at a rate
    growth      backlogs again, with many series, tenants, rows, duplicates, late data
    outage      the database stops while the broker floods
    results     the figures of every round, their medians and ratios
    report      as text and as JSON
    plot        as SVG
    run         the rounds

Time is taken where it is true: PostgreSQL stamps each commit (`track_commit_timestamp`), so the duration of a backlog
and the age of a row at its commit are read from the rows themselves afterwards, and nothing is polled meanwhile but a
counter twice a second.
"""
