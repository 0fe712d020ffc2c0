"""Chance that is looked up, not drawn: the k-th number of a seed is the same whoever asks, in whatever order."""

from __future__ import annotations


def mixed(seed: int, k: int) -> int:
    """64 well-mixed bits from (seed, k): the finaliser of SplitMix64 (Steele, Lea, Flood, 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + (k + 1) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)
