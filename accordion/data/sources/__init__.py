"""Readers of the source folder (layout of data/sample), one module for each kind of data."""
