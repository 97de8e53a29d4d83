"""Objectives and schedules from a config, and what they cost."""
