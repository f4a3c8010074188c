"""Several replicas: who has which tenants, who has none, and the end of a session that is not needed any more.

layout    who has what, for people and machines
check     tenants (and sites) that are in no shard, from the database and from what passes at the broker
retire    reads a session empty and ends it
"""
