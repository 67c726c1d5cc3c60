"""One attempt of a run on one rank."""
