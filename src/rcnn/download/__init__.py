"""Data sets and ImageNet weights from the web: fetched, checked, unpacked. Imports no other layer."""
