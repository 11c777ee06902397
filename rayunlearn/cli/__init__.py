"""The command line, a file per group of commands; may import everything."""

from rayunlearn.cli.main import main

__all__ = ["main"]
