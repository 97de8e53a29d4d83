"""Evaluations on a cluster."""
