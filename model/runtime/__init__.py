"""Continuous batching: the scheduler, and what it runs on the device."""
