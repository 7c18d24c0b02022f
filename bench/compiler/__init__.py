"""The offline compiler: the gate, its snapshots, operator schemas."""
