"""Annotations and pictures in, batches of static shape out."""
