"""Retrieval: the encoder cut out of the family, its training, its export, search, and its examination."""
