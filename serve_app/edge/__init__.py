"""The front: HAProxy, with a configuration of ours, between clients and Ray Serve.

`settings` is what one may choose, `render` writes HAProxy's configuration from it, `program` finds
and runs HAProxy.  docs/front.md says what the front does and what it leaves to the service.
"""
