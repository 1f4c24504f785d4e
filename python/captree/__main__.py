"""``python -m captree``: the same as the command ``captree``."""

import sys

from captree.cli import main

if __name__ == "__main__":
    sys.exit(main())
