"""Data expectations (Great Expectations 1.x): over the raw corpus and over the packed shards."""
