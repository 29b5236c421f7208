"""Compute-aligned training (arXiv 2604.24957): its theory and its three experiments."""
