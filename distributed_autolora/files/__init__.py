"""Atomic writes, JSON files and locks."""
