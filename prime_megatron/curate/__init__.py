"""From raw files to rows that train: read, filter, dedup, decontaminate, choices, attempts, sft. Start at `stage`."""
