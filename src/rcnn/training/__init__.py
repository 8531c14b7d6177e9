"""Targets, losses, schedules and the loop that brings them together."""
