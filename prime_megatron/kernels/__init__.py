"""Fused operations, one public function a file: the log-prob head beside its plain form, and `algo`'s reward path."""
