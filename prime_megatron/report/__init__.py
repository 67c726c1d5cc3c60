"""A run as one page: curves, events, and what its process rewards are on the text. Needs no model."""
