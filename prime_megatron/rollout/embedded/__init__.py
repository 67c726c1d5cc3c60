"""The built-in engine: transformers' model under our own decode loop."""
