"""Prompts in, samples out: in blocks that are committed whole, from an engine or an OpenAI-compatible endpoint."""
