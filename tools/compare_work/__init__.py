"""The work of tools/compare.py: process rewards against outcome-only RLOO on the starred quiz, run by run."""
