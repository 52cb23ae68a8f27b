"""Who runs.

registry.py     who is measured, and when not
baselines.py    their calls: the library, eager and compiled PyTorch, other packages
"""
