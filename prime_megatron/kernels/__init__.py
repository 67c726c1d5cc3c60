"""Fused operations: one public function a file, its plain-torch definition beside it. Imports nothing but `device`."""
