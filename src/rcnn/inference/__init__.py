"""Pictures in, detections in original pixels out."""
