"""What a run will need, told before it starts: the memory of every phase. No torch, no GPU, no weights."""
