"""`python -m traksense`, and the script `traksense`."""

import sys

from traksense import signals


def main() -> int:
    """Run a command; returns the exit status."""
    # Before the imports, which take most of a second on a small machine.
    signals.hold()
    from traksense.cli import main as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
