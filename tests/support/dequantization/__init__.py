"""Quantised checkpoints, and what they mean."""
