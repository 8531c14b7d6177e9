"""One experiment, one file: `RECIPE` is the Recipe, the docstring says command, expected mAP and its source."""
