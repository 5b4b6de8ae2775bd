"""Scores of what was trained."""
