"""Where the time of a generation goes, by range."""
