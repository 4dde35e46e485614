"""Every private or unofficial part of Ray that this project uses; all other modules use public Ray.

- `inventory`: the list of these parts, and `check`, which names those that a Ray has changed
- `runtime`: logs, calls, replica counts, request context, policies, metrics endpoints
- `affinity`: a request router that prefers the replica with the image's embedding
- `proxy`: what Ray's own HTTP servers answer, in the service's form
- `environment`: Ray's environment variables, and corrections to its HAProxy
"""
