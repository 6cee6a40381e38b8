"""Serving: the Triton repository, server, client, version pinning and rollout, and the local services."""
