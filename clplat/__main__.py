"""``python -m clplat`` is the command ``clplat``."""

import sys

from clplat.cli import main

if __name__ == "__main__":
    sys.exit(main())
