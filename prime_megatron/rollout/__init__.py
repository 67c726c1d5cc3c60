"""Generation: the engine Protocol, its engines, and collecting a batch."""
