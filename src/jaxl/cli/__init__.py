"""The command `jaxl`."""

from jaxl.cli.app import main, run

__all__ = ["main", "run"]
