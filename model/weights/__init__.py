"""Checkpoints: the official files, the hub, and a tiny model of random weights."""
