"""Judges detections against ground truth; imports no other layer, so it can be used alone."""
