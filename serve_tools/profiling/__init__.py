"""Measures every variant on this host."""
