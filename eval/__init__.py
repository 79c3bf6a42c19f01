"""Benchmarks over checkpoints (in preparation)."""
