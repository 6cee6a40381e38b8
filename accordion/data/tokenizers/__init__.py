"""The text, vision and audio tokenizers, each an artifact of its own."""
