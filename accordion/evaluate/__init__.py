"""Metrics, statistics and gates: what was measured, how sure it is, and whether it is good enough."""
