"""`python -m bertkin`, and what torchrun starts."""

import sys

from bertkin.cli import main

if __name__ == "__main__":
    sys.exit(main())
