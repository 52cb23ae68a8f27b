"""What is run: cases, what their transforms are in plain PyTorch, passes."""
