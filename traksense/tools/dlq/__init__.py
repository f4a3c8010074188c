"""What `traksense dlq` consists of.

`selection`: which dead letters; the options, and times as people write them.
`actions`: list, show, replay, purge.
`text`: tables, hexdumps, JSON.
`replay`: back through the broker, the way every message goes.
"""
