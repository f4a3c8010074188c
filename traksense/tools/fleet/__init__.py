"""A simulated fleet: what the devices of several tenants would publish, good and bad.

    signals    physics in a few lines: daily curves, hysteresis, sunlight, noise
    machines   chiller, cold room, solar inverter, drive, climate sensor: model time in, samples out
    formats    samples to bytes, one encoder for each device format
    faults     messages that nobody should accept, and why
    devices    one device: its machine, its format, its events
    sequence   who publishes when: an endless sequence of publications from one seed
    play       sends it through a publisher at a rate
    tally      what the broker confirmed of it, to be compared with a database

Everything apart from timestamps repeats with the same seed and options.
"""

from traksense.tools.fleet.faults import Fault
from traksense.tools.fleet.formats import Format
from traksense.tools.fleet.play import Limits, play
from traksense.tools.fleet.sequence import Fleet, FleetOptions, Publication
from traksense.tools.fleet.tally import Tally

__all__ = ["Fault", "Fleet", "FleetOptions", "Format", "Limits", "Publication", "Tally", "play"]
