"""What is printed: tables, reports of them, pictures, targets."""
