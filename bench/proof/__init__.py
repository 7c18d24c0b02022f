"""Correctness: verification, invariants, mutants, checks around the interpreter."""
