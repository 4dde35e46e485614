"""Inference engines: blocking computation, a folder for each model family; without Ray or HTTP."""
