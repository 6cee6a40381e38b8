"""The Megatron-Core engine: the transformer stack over expert, tensor and context parallel ranks."""
