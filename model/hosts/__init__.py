"""What people already run, made faster in place: one file per host, and `accelerate`, which knows them all."""
