"""How it is measured.

runner.py    the rows of a task: checked, then timed
oracle.py    right or wrong, by float64
timing.py    how a call is timed
"""
