"""What `traksense validate` consists of: the checks that the seed's `validate_phase4.py` and its checklist promised.

`run`: the order of the checks, connecting first.
`target`: the stack under test, and what every check does with it.
`wiring`: the first message; what is wrong with the stack as a whole shows here.
`storing`, `repeating`, `speed`, `watching`: the checks.
`payloads`: what they publish.
`endpoint`: the service's HTTP endpoint.
`report`: what was found, for people and for machines.
`cleanup`: so that nothing of it stays.
"""
