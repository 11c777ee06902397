"""`python -m rayunlearn` is `rayunlearn`."""

import sys

from rayunlearn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
