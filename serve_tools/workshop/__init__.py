"""How the project's own constants and weights are made; the service does not need it."""
