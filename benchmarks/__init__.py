"""Speed and size against the budgets of the design; `python -m benchmarks` prints one table."""
