"""Measuring every variant on this host, and reading what was measured."""
