"""`python -m accordion`: the command line."""

from accordion.cli import app

app()
