"""The capacity planner: memory, frame time and latency of a GPU that need not be here."""
