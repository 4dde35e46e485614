"""Makes the project's own constants and weights: int8 models, calibrations, the tests' CLIP."""
