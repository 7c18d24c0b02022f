"""Timing and profiling."""
