"""Every reader of foreign bytes."""

from tests.fuzz import annotations, binaries, weights

TARGETS = [*weights.TARGETS, *annotations.TARGETS, *binaries.TARGETS]
