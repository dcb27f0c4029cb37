"""`python -m edgekit` is the `edgekit` command."""

from edgekit.cli.main import main

main()
