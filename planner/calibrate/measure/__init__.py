"""Measures a live engine on this machine: the only room that starts vLLM or asks NVML."""
