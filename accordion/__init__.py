"""Accordion: one elastic mixture-of-experts pre-training run, a family of models, served by Triton."""

__version__ = "0.1.0"
