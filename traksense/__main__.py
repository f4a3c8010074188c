"""`python -m traksense`."""

import sys

from traksense.cli import main

if __name__ == "__main__":
    sys.exit(main())
