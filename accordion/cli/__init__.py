"""The command line `accordion`: what users do outside Flyte. Commands import what they use when they run."""

from accordion.cli import artifacts, family, models, services, tokens
from accordion.cli.app import app

__all__ = ["app", "artifacts", "family", "models", "services", "tokens"]
