"""Who runs: the library, eager and compiled PyTorch, other packages."""
