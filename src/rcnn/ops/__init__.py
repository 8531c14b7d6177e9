"""Pure functions of tensors: boxes, anchors, sampling, non-maximum suppression, RoI operators."""
