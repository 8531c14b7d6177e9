"""One verb, one file: typed arguments and main(), without logic."""
