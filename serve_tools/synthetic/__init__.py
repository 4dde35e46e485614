"""Synthetic images with exact masks, for measurements and calibration."""
