"""What is run.

cases.py      the cases, their θ, the tasks of a suite, the bytes that a pass has to move
sources.py    what a case's transform is in plain PyTorch
passes.py     forward, backward, both: as one call; captured in a graph
"""
