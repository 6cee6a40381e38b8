"""Typed, frozen settings; unknown keys are refused with their path. Imports no torch."""

from accordion.config.base import Settings
from accordion.config.profile import Profile, load_profile, profile_names

__all__ = ["Profile", "Settings", "load_profile", "profile_names"]
