"""What one step is made of: its plan, its batch, its advantages, its losses, its metrics."""
