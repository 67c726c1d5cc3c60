"""Topology and layout arithmetic; no Megatron here."""
