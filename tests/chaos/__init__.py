"""What the service survives, shown under load: ``python -m tests.chaos``; docs/reliability.md.

Not collected by pytest: these take minutes and hold times against bounds.
"""
