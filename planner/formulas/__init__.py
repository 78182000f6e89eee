"""Physics: pure functions of numbers and arrays (weights, KV cache, memory, operators, step, cost)."""
