"""Measurements of the platform, always beside a baseline from the same interleaved run."""
