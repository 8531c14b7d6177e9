"""Tests of rcnn.benchmark; no test looks at how long anything took."""
