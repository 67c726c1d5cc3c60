"""An engine in processes of its own, and what keeps it honest."""
