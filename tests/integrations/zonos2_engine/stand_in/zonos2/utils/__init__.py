"""A part of the stand-in: zonos2 itself has no such file, and its parts have."""
