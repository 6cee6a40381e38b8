"""From sources to packed sequences: ingest, tokenizers, packing, loading."""
