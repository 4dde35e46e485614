"""Every metric of the service.

Ray exports them with ``ray_`` before the name, and with the labels application, deployment and
replica (`serve_app.deployments.telemetry`); docs/observability.md tells of each.  Labels have
few values, known beforehand: never a request's id, an image or a text.
"""

from __future__ import annotations

from serve_app.telemetry.instruments import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

REQUESTS = Counter(
    "sam_requests_total",
    "HTTP requests answered, by route template, status, and error code (empty: none)",
    labels=("route", "status", "code"),
)
REQUEST_SECONDS = Histogram(
    "sam_request_duration_seconds",
    "From a request's first byte to its answer's last",
    labels=("route",),
    buckets=SECONDS,
)
REQUESTS_IN_FLIGHT = Gauge("sam_requests_in_flight", "Requests that the ingress works on now")
REFUSALS = Counter(
    "sam_refusals_total",
    "Requests refused before any work: capacity, rate, key, body_size, body_time, stopping",
    labels=("reason",),
)
STAGE_SECONDS = Histogram(
    "sam_stage_duration_seconds",
    "Time of a request in one of its stages, which are those of timings_ms",
    labels=("stage",),
    buckets=SECONDS,
)
QUEUE_ITEMS = Gauge(
    "sam_queue_items", "Items (images, prompts) that wait for a pass", labels=("queue",)
)
QUEUE_AGE = Gauge(
    "sam_queue_oldest_seconds", "How long the oldest waiting item has waited", labels=("queue",)
)
BATCH_ITEMS = Histogram(
    "sam_batch_items",
    "Items in one pass of an engine",
    labels=("queue",),
    buckets=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0),
)
BATCH_FILL = Gauge(
    "sam_batch_fill_ratio",
    "Items of the last passes over the most that a pass may hold; 0 after some quiet seconds",
    labels=("queue",),
)
CACHE_LOOKUPS = Counter(
    "sam_cache_lookups_total",
    "Lookups by cache (embedding, image) and result (memory, redis, miss, corrupt)",
    labels=("cache", "result"),
)
REDIS_OPERATIONS = Counter(
    "sam_redis_operations_total",
    "Operations of Redis (get, put) by outcome (ok, error, timeout, skipped, dropped)",
    labels=("operation", "outcome"),
)
REDIS_BREAKER_OPEN = Gauge("sam_redis_breaker_open", "1 while Redis is left alone, else 0")
ESCALATIONS = Counter(
    "sam_escalations_total",
    "Images of which a second variant was asked or wanted (answered, no_time, failed)",
    labels=("outcome",),
)
RETRIES = Counter(
    "sam_retries_total",
    "Calls made again since a replica was lost, by callee and outcome (ok, failed, left)",
    labels=("callee", "outcome"),
)
VARIANT_REPLICAS = Gauge(
    "sam_variant_replicas", "Running replicas of a variant's half", labels=("variant", "half")
)
