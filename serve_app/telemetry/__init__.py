"""Metrics, request ids and trace spans, independent of the collectors.

Any module may report here.  The collectors are set where a process starts
(`serve_app.deployments`); in a process without them, reporting does nothing.
"""
