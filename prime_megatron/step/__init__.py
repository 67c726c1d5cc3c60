"""What one step is made of: its plan, its batch, its losses, its metrics."""
