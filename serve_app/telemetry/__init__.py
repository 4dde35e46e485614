"""What the service tells of itself: metrics, the request at hand, traces.

Everything in the service may tell something here; who collects it is set where a process starts
(`serve_app.deployments`), and in a process without a collector nothing happens.
"""
