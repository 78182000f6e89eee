"""Decisions: legal candidates, their evaluation, the ranking and the reasons of the rejected."""
