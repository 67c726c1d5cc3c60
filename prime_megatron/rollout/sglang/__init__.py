"""SGLang behind the engine's interface."""
