"""A run seen from outside, while it runs or afterwards: what its folder says, and that as lines for a terminal."""
