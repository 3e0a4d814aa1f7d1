"""Answers that are given again: the same question of the same environment costs its provider once (docs/cache.md)."""
