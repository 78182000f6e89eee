"""Fits coefficients from evidence (kernel tables, measured runs) and stores them."""
