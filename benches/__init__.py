"""Benchmarks of captree, and captree beside its peers (`benches.compare`)."""
