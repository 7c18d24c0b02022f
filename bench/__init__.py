"""Benchmarks: how long what this project computes takes, never before it was shown to be right."""
