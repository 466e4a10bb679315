"""Spec to Plan: which runs there are, what they need and what they will do. No torch."""
