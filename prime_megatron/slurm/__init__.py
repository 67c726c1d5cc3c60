"""Runs as SLURM jobs: the job script, and what happens when an attempt ends."""
