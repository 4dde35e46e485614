"""The edge: HAProxy between clients and Ray Serve.

`settings` defines what an operator may choose and fills in the template of HAProxy's configuration,
haproxy.cfg; `haproxy` finds and runs HAProxy.  docs/front.md describes what the edge
does and what it leaves to the service.
"""
