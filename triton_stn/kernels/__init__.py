"""The Triton kernels. This package imports triton only."""
