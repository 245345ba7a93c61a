"""`python -m jaxl`, the same as the command `jaxl`."""

from jaxl.cli import main

main()
