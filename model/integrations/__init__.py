"""Integrations: other projects' ZONOS2 models and codecs, which `accelerate` patches in place."""
