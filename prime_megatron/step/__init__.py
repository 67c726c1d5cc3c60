"""One step, between the trainer and the formulas: what it runs, on which batch, with which losses; what it tells."""
