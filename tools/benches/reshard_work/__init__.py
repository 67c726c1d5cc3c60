"""What the reshard bench measures against, and on."""
