"""The edge: HAProxy between clients and Ray Serve.

`settings` defines what an operator may choose, the template haproxy.cfg is HAProxy's configuration,
`render` fills it in, and `haproxy` finds and runs HAProxy.  docs/front.md describes what the edge
does and what it leaves to the service.
"""
