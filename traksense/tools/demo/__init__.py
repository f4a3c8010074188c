"""`traksense demo`: the whole system on one machine, in one directory, on real parts.

place      the directory: what is where, which ports, how to look at the data afterwards
run        starts everything, ends everything, in order
observe    asks the service (HTTP) and the database (SQL) how they are, several times a second
state      what was learned: rates, quantiles, the ledger, the latest values
view       the state on a terminal
lines      the state where there is no terminal, and the words at the start and at the end
verdict    what the broker confirmed beside what is stored
"""
