"""`python -m rayunlearn` is `rayunlearn`."""

import sys

from rayunlearn.cli import main

if __name__ == "__main__":
    sys.exit(main())
