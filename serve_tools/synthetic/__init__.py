"""Drawn images with exact masks, to measure and to calibrate on."""
