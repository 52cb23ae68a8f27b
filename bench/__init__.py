"""Measure ``triton_stn`` against what else does the job: ``python -m bench``."""
