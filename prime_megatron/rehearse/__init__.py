"""A run's layout before a GPU is booked: its ranks built at full size without devices or weights, and what is planned
for it held against what was built."""
