"""Pages, tables and comparisons made of result files."""
