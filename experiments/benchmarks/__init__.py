"""Time and memory, each as ``python -m experiments.benchmarks.NAME``."""
