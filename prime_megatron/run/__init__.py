"""One attempt of a run on one rank: its parts, and what watches over them."""
