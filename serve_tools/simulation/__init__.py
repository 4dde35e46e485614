"""A discrete-event simulator of the graph: requests, replicas, batches, router and scaling.

It drives the same `serve_app.routing.router.choose_variant` and `serve_app.scaling.policy.decide`
as the service, and a model of Ray Serve's own policy for comparison.
"""
