"""Watching it live: what a run records, or what an existing store tells of itself, read while it happens.

A Source is looked at once a second; State keeps what came of it, bounded; metrics, health, dashboard and alerts read State.
Nothing here is imported by, or waited for by, what is measured.
"""
