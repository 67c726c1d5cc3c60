"""What lets Megatron-core run on a CPU: shims, and layers in plain torch."""
