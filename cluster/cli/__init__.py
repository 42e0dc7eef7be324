"""The command line, `harbor`."""

from cluster.cli.commands import main

__all__ = ["main"]
