"""Inputs that broke version 0.1, as a user would give them; each is an example of a kind that other tests cover."""
