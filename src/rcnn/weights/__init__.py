"""Weight files: ours, torchvision's and MXNet's. Imports no other layer, so it can be used alone."""
