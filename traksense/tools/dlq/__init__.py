"""What `traksense dlq` consists of.

`selection`: which dead letters; the options, and times as people write them.
`text`: tables, hexdumps, JSON.
`replay`: back through the broker, the way every message goes.
"""
