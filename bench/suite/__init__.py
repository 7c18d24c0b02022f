"""`make gpu`: its stages, presets, checks on the device and result files."""
