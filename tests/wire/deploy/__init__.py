"""What is under deploy/ works: each file by its published schema or by the program that reads it."""
