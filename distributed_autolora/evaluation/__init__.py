"""Trustworthy evaluation in one process: named attacks, fixed chunks, attack sanity, the robustness curve."""
