"""Results of other benchmark tools, one module a format."""
