"""Held-out accuracy of the engine's current weights."""
