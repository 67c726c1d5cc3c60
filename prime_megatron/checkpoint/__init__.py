"""One checkpoint for everything: the unit on disk, how it is written, found, checked and kept."""
