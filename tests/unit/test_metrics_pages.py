"""The pages of several nodes as one page for Prometheus."""

from __future__ import annotations

from serve_app.deployments.metrics import merge_pages

ONE = """\
# HELP ray_serve_requests Requests so far.
# TYPE ray_serve_requests counter
ray_serve_requests{node="1"} 3.0
ray_serve_requests{node="1",route="/a b"} 4.0
# HELP ray_node_mem Memory.
# TYPE ray_node_mem gauge
ray_node_mem{node="1"} 5.0
# HELP ray_serve_prompts Prompts so far.
# TYPE ray_serve_prompts histogram
ray_serve_prompts_bucket{le="1.0"} 1.0
ray_serve_prompts_count 1.0
"""
TWO = """\
# HELP ray_serve_requests Requests so far, told otherwise.
# TYPE ray_serve_requests counter
ray_serve_requests{node="2"} 6.0
"""


def test_each_family_has_one_head_and_the_samples_of_all_nodes() -> None:
    assert merge_pages([ONE, TWO]) == (
        "# HELP ray_serve_prompts Prompts so far.\n"
        "# TYPE ray_serve_prompts histogram\n"
        'ray_serve_prompts_bucket{le="1.0"} 1.0\n'
        "ray_serve_prompts_count 1.0\n"
        "# HELP ray_serve_requests Requests so far.\n"
        "# TYPE ray_serve_requests counter\n"
        'ray_serve_requests{node="1"} 3.0\n'
        'ray_serve_requests{node="1",route="/a b"} 4.0\n'
        'ray_serve_requests{node="2"} 6.0\n'
    )


def test_other_comments_do_not_end_a_family() -> None:
    page = ONE.replace('ray_serve_requests{node="1"} 3.0\n', "# just a remark\n#\n")
    assert 'ray_serve_requests{node="1",route="/a b"} 4.0' in merge_pages([page])


def test_families_whose_names_begin_alike_stay_apart() -> None:
    page = (
        "# TYPE ray_serve_a gauge\nray_serve_a 1\n# TYPE ray_serve_a_b counter\nray_serve_a_b 2\n"
    )
    assert merge_pages([page, page]).splitlines() == [
        "# TYPE ray_serve_a gauge",
        "ray_serve_a 1",
        "ray_serve_a 1",
        "# TYPE ray_serve_a_b counter",
        "ray_serve_a_b 2",
        "ray_serve_a_b 2",
    ]


def test_nodes_that_did_not_answer_and_heads_without_samples_add_nothing() -> None:
    heads = "# HELP ray_serve_x X.\n# TYPE ray_serve_x gauge\n"
    assert merge_pages(["", heads, TWO]) == merge_pages([TWO])
    assert merge_pages([]) == "\n"
