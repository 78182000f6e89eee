"""Behaviour under load: the steady state of one replica and the fleet that serves the peak."""
