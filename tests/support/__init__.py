"""Tiny models and runs on gloo ranks, for the parity bench; the tests use them, too."""
