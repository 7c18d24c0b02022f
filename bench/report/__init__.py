"""A page made of results."""
