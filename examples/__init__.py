"""Experiments with spatial transformers on real data; each runs as ``python -m examples.NAME``."""
