"""Commands for people: demo, validate, simulate, prove, bench, and the processes that they run against."""
