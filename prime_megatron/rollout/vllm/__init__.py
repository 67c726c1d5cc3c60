"""vLLM behind the engine's interface."""
