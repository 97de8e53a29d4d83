"""Checks of an evaluation: can its result be believed?"""
