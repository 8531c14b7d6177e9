"""Weight files: ours and those of other programs. Imports no other layer, so it can be used alone."""
