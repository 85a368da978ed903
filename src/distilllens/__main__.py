"""``python -m distilllens``: the command line, also under torchrun."""

import sys

from distilllens.cli import main

if __name__ == "__main__":
    sys.exit(main())
