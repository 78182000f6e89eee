"""Data: units, hardware, models, workloads, deployments, plans. Imports nothing but pydantic; reads no file."""
