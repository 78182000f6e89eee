"""Speed, size and error against budgets and against other programs; `python -m benchmarks` prints one table."""
