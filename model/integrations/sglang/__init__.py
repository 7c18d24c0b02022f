"""A plugin for sglang-omni."""
