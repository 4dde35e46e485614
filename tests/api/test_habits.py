"""What clients do out of habit: forms with empty fields, other spellings, probes, browsers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from serve_app.capabilities import Everything, Prompt, SegmentRequest, TextQuery
from serve_app.core.errors import SamServeError
from serve_app.core.limits import Limits
from serve_app.core.settings import GraphSettings, SecuritySettings
from serve_app.core.wire import decoded_base64, unknown_field
from serve_app.http.app import create_app

from ..fakes.service import FakeService

FILE = {"file": ("x.png", b"1")}
BOX = "[1, 2, 3, 4]"


async def said(client: Any, fields: dict[str, Any]) -> tuple[str, str | None]:
    return await said_of(client, FILE, fields)


async def said_of(client: Any, files: Any, fields: Any = None) -> tuple[str, str | None]:
    answer = await client.post("/v1/segment", files=files, data=fields)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    return error["message"], error.get("field")


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
async def test_empty_fields_of_a_form_are_absent(client, service, empty):
    names = [
        *("text", "variant", "everything", "max_latency_ms", "min_quality", "format", "request"),
        *("prompts", "point_coords", "point_labels", "mask_input", "return_logits", "image_id"),
    ]
    fields = {"box": BOX, **dict.fromkeys(names, empty)}
    answer = await client.post("/v1/segment", files=FILE, data=fields)
    assert answer.status_code == 200, answer.text
    assert service.requests[-1].variant == "auto"
    answer = await client.post("/v1/embed", files=FILE, data={"variant": empty})
    assert answer.status_code == 200


async def test_a_file_that_no_person_chose_is_absent(client):
    body = b"".join(
        b'--b\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % part
        for part in [
            (b"file", b'; filename=""', b""), (b"image_id", b"", b"a"), (b"text", b"", b"dog"),
        ]
    )  # fmt: skip
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = await client.post("/v1/segment", content=body + b"--b--\r\n", headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("text", ["75,75,400,290", "(75,75,400,290)", "75 75 400 290", "[75,"])
async def test_a_box_that_is_not_json_is_shown_its_form(client, text):
    message, field = await said(client, {"box": text})
    assert ("box=[x0, y0, x1, y1]" in message, field) == (True, "box")


@pytest.mark.parametrize(
    ("fields", "told", "about"),
    [
        ({"point_coords": "120,80"}, "point_coords=[[x, y], …]", "point_coords"),
        ({"point_coords": "[[1,2]]", "point_labels": "1,0"}, "point_labels=[1, 0]", "point_labels"),
        ({"prompts": "box"}, 'prompts=[{"box":', "prompts"),
        ({"everything": "yes"}, "true, false or a JSON object", "everything"),
        ({"text": "a", "max_latency_ms": "fast"}, "must be a number", "max_latency_ms"),
        ({"text": "a", "max_masks": "few"}, "must be a number", "max_masks"),
        ({"request": "{'box': [1, 2, 3, 4]}"}, "double quotes", "request"),
        ({"box": "[[75,75,400,290],[1,1,50,50]]"}, "use prompts", "box"),
        ({"box": "[75,75,400]"}, "must have 4 or more items, not 3; box is [x0, y0", "box"),
        ({"box": '{"x0": 75}'}, "box must be a list; box is [x0, y0, x1, y1]", "box"),
        ({"box": '["75",75,400,290]'}, "box[0] must be a number; box is [x0, y0", "box[0]"),
        ({"point_coords": "[1,2,3]"}, "; point_coords is [[x, y], …]", "point_coords[0]"),
        ({"point_coords": "[[1,2]]", "point_labels": "[2]"}, "[1, 0]", "point_labels[0]"),
        ({"prompts": '{"box": [1,2,3,4]}'}, "prompts must be a list; prompts is [{", "prompts"),
        ({"mask_input": "AAAA"}, "mask_input as base64 must be 256 x 256", "mask_input"),
        ({"text": "a", "max_masks": "1.5"}, "max_masks must be a whole number", "max_masks"),
        ({"text": "a", "max_latency_ms": "0"}, "must be greater than 0", "max_latency_ms"),
        ({"text": '["cat"'}, 'text=["dog", "red car"]', "text"),
        ({"box": BOX, "channel": "red"}, "channel=[3, 2, 1]", "channel"),
        ({"everything": "1"}, "everything must be true, false or a JSON object", "everything"),
        ({"everything": '{"points": 8}'}, "points_per_batch or points_per_side?", "everything"),
        ({"text": "cat", "box": BOX}, "not box and text together", None),
        ({"variant": "fast"}, "prompts (box, mask_input, point_coords", None),
        ({"request": '{"text": "cat"'}, "it ends too early", "request"),
        ({"request": '{"text": cat}'}, "malformed JSON at its character 10", "request"),
        ({"request": "{\"text\": 'cat'}"}, "double quotes", "request"),
    ],
)
async def test_wrong_fields_are_shown_the_right_form(client, fields, told, about):
    message, field = await said(client, fields)
    assert told in message
    assert field == about


async def test_json_with_single_quotes_is_told_so(client):
    headers = {"content-type": "application/json"}
    answer = await client.post("/v1/segment", content="{'image_id': 'a'}", headers=headers)
    assert "double quotes" in answer.json()["error"]["message"]


async def test_texts_of_a_form_may_be_sent_as_files(client, service):
    """As pages do with a Blob, and Swagger UI with fields that hold lists."""
    parts = {name: ("blob", text, "application/json") for name, text in
             {"box": BOX, "variant": "fast", "format": "", "page": " "}.items()}  # fmt: skip
    answer = await client.post("/v1/segment", files={**FILE, **parts})
    assert answer.status_code == 200, answer.text
    assert service.requests[-1].task.prompts[0].box.tolist() == [1, 2, 3, 4]
    files = [("files", ("x.png", b"1"))] * 4  # as many as the limit allows
    answer = await client.post("/v1/segment/batch", files=[*files, *parts.items()])
    assert answer.status_code == 200, answer.text
    message, field = await said_of(client, {**FILE, "box": ("b.png", b"\xff\xd8\xff")})
    assert (message, field) == ("box must be a UTF-8 text, not a file", "box")


@pytest.mark.parametrize("boxes", [[[1, 2, 3, 4]], [[1, 2, 3, 4], [5, 6, 7, 8]]])
async def test_two_boxes_in_one_are_told_of_prompts(client, boxes):
    answer = await client.post("/v1/segment", json={"image_id": "a", "box": boxes})
    error = answer.json()["error"]
    assert ("use prompts" in error["message"], error["code"]) == (True, "invalid_prompt")
    with pytest.raises(SamServeError, match="use prompts"):
        Prompt(box=boxes)


NEAR = {
    "bbox": "box",
    "points": "point_coords or point_labels",
    "model": "variant",
    "query": "text",
    "mask": "mask_input or max_masks",
    "multi": "multimask_output",
    "texts": "text",
    "Format": "format",
    "max-latency-ms": "max_latency_ms",
    "multimask": "multimask_output",
}


@pytest.mark.parametrize("name", NEAR)
async def test_an_unknown_field_is_told_the_nearest(client, name):
    hint = f"did you mean {NEAR[name]}?"
    message, _ = await said(client, {"box": BOX, name: "1"})
    assert hint in message
    members = {"image_id": "a", "box": [1, 2, 3, 4], name: 1}
    answer = await client.post("/v1/segment", json=members)
    assert hint in answer.json()["error"]["message"]


async def test_unknown_fields_inside_are_told_names_of_their_own_type(client):
    for members, near in [
        ({"prompts": [{"bbox": [1, 2, 3, 4]}]}, "box"),
        ({"everything": {"mod": 4}}, "mode"),
        ({"everything": {"max_mask": 4}}, None),
    ]:
        answer = await client.post("/v1/segment", json={"image_id": "a", **members})
        message = answer.json()["error"]["message"]
        assert f"did you mean {near}?" in message if near else "max_masks" not in message


@pytest.mark.parametrize(
    ("build", "near"),
    [
        (lambda: Prompt(bbox=[1, 2, 3, 4]), "box"),
        (lambda: TextQuery(text="a", threshold=0.5), "text_threshold"),
        (lambda: TextQuery(texts="a"), "text"),
        (lambda: Everything(mod=4), "mode"),
        (lambda: SegmentRequest(image="a", task=TextQuery(text="a"), varaint="x"), "variant"),
    ],
)
def test_unknown_fields_in_python_are_told_the_nearest(build, near):
    with pytest.raises(SamServeError, match=rf"did you mean {near}\?"):
        build()


def test_unknown_settings_are_told_the_nearest():
    with pytest.raises(ValidationError, match=r"did you mean request_timeout_s\?"):
        GraphSettings.model_validate({"ingress": {"request_timeout": 5}})
    with pytest.raises(ValidationError, match="Extra inputs"):
        GraphSettings.model_validate({"ingress": {"zzz": 5}})


@given(st.lists(st.text(max_size=200), max_size=8))
def test_names_of_callers_are_not_repeated(names):
    known = ["box", "text"]
    assert unknown_field(names, known) in {
        "the request has an unknown field; see /docs for the known ones",
        *(f"the request has an unknown field: did you mean {n}?" for n in (*known, "text or box")),
    }


@given(st.binary(max_size=40), st.booleans(), st.booleans(), st.booleans())
def test_base64_of_either_alphabet_with_or_without_padding(data, urlsafe, padded, broken):
    text = (base64.urlsafe_b64encode if urlsafe else base64.b64encode)(data).decode()
    text = text if padded else text.rstrip("=")
    text = "\n".join(text[i : i + 7] for i in range(0, len(text), 7)) if broken else text
    assert decoded_base64(text) == data


@pytest.mark.parametrize("text", ["A", "AAAAA", "AA=", "A===", "AA==AA==", "-_+/", "AA%A", "AÄAA"])
def test_other_text_is_not_base64(text):
    with pytest.raises(PydanticCustomError):
        decoded_base64(text)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/health", "/metrics", "/v1/models"])
async def test_head_is_get_without_the_body(client, path):
    head, get = await client.head(path), await client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-length"] == get.headers["content-length"]
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_head_of_a_route_for_post(client):
    assert (await client.head("/v1/segment")).status_code == 405


async def test_a_slash_at_the_end_changes_nothing(client, figures):
    for path in ("/healthz/", "/readyz/", "/v1/models/", "/docs/"):
        assert (await client.get(path)).status_code == 200
    answer = await client.post("/v1/segment/", files=FILE, data={"text": "dog"})
    assert answer.status_code == 200
    assert figures.counts["sam_requests_total", "/v1/segment", "200", ""] == 1
    for path in ("/v1/segment//", "/v1//segment", "/nothing/"):
        assert (await client.get(path)).status_code == 404


def app_with(**security: Any) -> httpx.AsyncClient:
    async def metrics() -> bytes:
        return b""

    app = create_app(
        FakeService(), Limits(linger_seconds=0), metrics=metrics, version="1",
        security=SecuritySettings(**security),
    )  # fmt: skip
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sam")


KEY = "k" * 43
KEYS = [{"name": "alice", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]


async def test_a_slash_at_the_end_opens_nothing():
    async with app_with(api_keys=KEYS) as client:
        assert (await client.get("/metrics/")).status_code == 401
        assert (await client.head("/v1/models")).status_code == 401
        assert (await client.get("/readyz/")).status_code == 200


ORIGIN = "https://app.example.org"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-api-key",
}


async def test_no_page_of_another_origin_is_allowed_by_default(client):
    for answer in (
        await client.options("/v1/segment", headers=PREFLIGHT),
        await client.get("/healthz", headers={"origin": ORIGIN}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_pages_of_an_allowed_origin_may_call():
    async with app_with(api_keys=KEYS, allowed_origins=[ORIGIN]) as client:
        asked = await client.options("/v1/segment", headers=PREFLIGHT)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in asked.headers["access-control-allow-methods"]
        allowed = asked.headers["access-control-allow-headers"].lower()
        assert {"x-api-key", "authorization", "content-type"} <= set(allowed.split(", "))
        headers = {"origin": ORIGIN, "x-api-key": KEY}
        for answer in (
            await client.post("/v1/segment", files=FILE, data={"text": "a"}, headers=headers),
            await client.get("/v1/models", headers={"origin": ORIGIN}),  # 401, which it may read
        ):
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
        other = await client.options("/v1/segment", headers={**PREFLIGHT, "origin": "https://b.c"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("origin", ["app.example.org", "https://a.b/", "https://A.b", "null", ""])
def test_what_no_browser_sends_is_no_origin(origin):
    with pytest.raises(ValidationError):
        SecuritySettings(allowed_origins=(origin,))


async def test_the_root_leads_to_the_documentation(client):
    answer = await client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


async def test_the_documentation_needs_no_foreign_host(client):
    page = await client.get("/docs")
    assert page.status_code == 200
    assert not re.findall(r"(?:https?:)?//[a-z]", page.text)
    links = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(links) == 3
    for link in links:
        answer = await client.get(link)
        assert (answer.status_code, bool(answer.content)) == (200, True)
    assert "SwaggerUIBundle" in (await client.get(links[2])).text
    policy = page.headers["content-security-policy"]
    inline = page.text.partition("<script>")[2].partition("</script>")[0].encode()
    digest = base64.b64encode(hashlib.sha256(inline).digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "http" not in policy
    paths = json.loads((await client.get("/openapi.json")).text)["paths"]
    assert not [path for path in paths if path.startswith("/docs") or path == "/"]


@pytest.mark.parametrize("name", ["redoc.standalone.js", "..%2fcore.py", "x"])
async def test_only_the_pages_own_files_are_served(client, name):
    assert (await client.get(f"/docs/{name}")).status_code == 404
