"""Runs one harness under atheris: `python -m tests.fuzz NAME [arguments of libFuzzer]`."""

from __future__ import annotations

import logging
import sys

import atheris

from tests.fuzz import harnesses


def main() -> None:
    """Never returns: libFuzzer ends the process, with a status other than 0 if something was found."""
    _, name, *arguments = sys.argv
    # What is imported from here on tells the fuzzer which branches an input takes.
    with atheris.instrument_imports(include=["traksense", "paho"]):
        one_input = harnesses.load(name)
    logging.disable()
    atheris.Setup([sys.argv[0], *arguments], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
