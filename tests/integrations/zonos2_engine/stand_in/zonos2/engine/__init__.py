"""The engine: a model with a backend and graphs."""
