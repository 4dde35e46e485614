"""Every kind of bad input has its code, its field, and gives nothing of itself back."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serve_app.core import errors
from serve_app.core.limits import Limits
from serve_app.http.body import load_json

SECRET = "xyzzy-s3cret-marker"  # a part of the request that must never come back
IMAGE = base64.b64encode(b"image").decode()
PROMPT = {"box": [1, 2, 3, 4]}


def checked(answer: httpx.Response, status: int, code: str, field: str | None = None) -> str:
    """The message of an error answer that is as it must be."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code, answer.text
    assert error.get("field") == field, answer.text
    assert error["request_id"] == answer.headers["x-request-id"]
    assert error["message"]
    assert error.keys() <= {"code", "message", "field", "request_id"}
    assert len(answer.content) < 2048
    assert SECRET not in answer.text
    return str(error["message"])


S = SECRET
FAULTS: dict[str, tuple[Any, str, str | None]] = {
    "not an object": ([S], "invalid_request", None),
    "no image": ({"text": S}, "invalid_request", "image"),
    "two images": ({"image": IMAGE, "image_id": S, "text": "a"}, "invalid_request", "image"),
    "not base64": ({"image": S + "%", "text": "a"}, "invalid_request", "image"),
    "a URL": ({"image": "http://" + S, "text": "a"}, "invalid_request", "image"),
    "data URL that is not base64": (
        {"image": "data:image/png," + S, "text": "a"},
        "invalid_request",
        "image",
    ),
    "no task": ({"image_id": "a"}, "invalid_request", None),
    "two tasks": ({"image_id": "a", "text": S, "everything": True}, "invalid_request", None),
    "everything false": ({"image_id": "a", "everything": False}, "invalid_request", None),
    "unknown field": ({"image_id": "a", "text": "a", S: S}, "invalid_request", None),
    "unknown field of a prompt": (
        {"image_id": "a", "prompts": [{**PROMPT, S: 1}]},
        "invalid_prompt",
        "prompts[0]",
    ),
    "no prompts": ({"image_id": "a", "prompts": []}, "invalid_prompt", "prompts"),
    "prompts of another type": ({"image_id": "a", "prompts": S}, "invalid_prompt", "prompts"),
    "empty prompt": ({"image_id": "a", "prompts": [PROMPT, {}]}, "invalid_prompt", "prompts[1]"),
    "box of three": (
        {"image_id": "a", "prompts": [{"box": [1, 2, 3]}]},
        "invalid_prompt",
        "prompts[0].box",
    ),
    "box of words": (
        {"image_id": "a", "prompts": [{"box": [1, 2, 3, S]}]},
        "invalid_prompt",
        "prompts[0].box[3]",
    ),
    "empty box": (
        {"image_id": "a", "prompts": [PROMPT] * 3 + [{"box": [3, 2, 3, 4]}]},
        "invalid_prompt",
        "prompts[3].box",
    ),
    "labels that do not match": (
        {"image_id": "a", "prompts": [{"point_coords": [[1, 2]], "point_labels": [1, 0]}]},
        "invalid_prompt",
        "prompts[0].point_labels",
    ),
    "points without labels": (
        {"image_id": "a", "prompts": [{"point_coords": [[1, 2]]}]},
        "invalid_prompt",
        "prompts[0].point_labels",
    ),
    "label 2": (
        {"image_id": "a", "prompts": [{"point_coords": [[1, 2]], "point_labels": [2]}]},
        "invalid_prompt",
        "prompts[0].point_labels[0]",
    ),
    "a number beyond float32": (
        {"image_id": "a", "prompts": [{"box": [1, 2, 1e300, 3]}]},
        "invalid_prompt",
        "prompts[0].box",
    ),
    "mask_input of a wrong size": (
        {"image_id": "a", "prompts": [{"mask_input": IMAGE}]},
        "invalid_prompt",
        "prompts[0].mask_input",
    ),
    "mask_input that is not base64": (
        {"image_id": "a", "prompts": [{"mask_input": S + "%"}]},
        "invalid_request",
        "prompts[0].mask_input",
    ),
    "too many prompts": ({"image_id": "a", "prompts": [PROMPT] * 9}, "too_many_prompts", "prompts"),
    "too many points": (
        {"image_id": "a", "prompts": [{"point_coords": [[1, 2]] * 5, "point_labels": [1] * 5}]},
        "too_many_prompts",
        "prompts[0].point_coords",
    ),
    "too many texts": ({"image_id": "a", "text": ["a", "b", "c", S]}, "too_many_prompts", "text"),
    "a long text": ({"image_id": "a", "text": S + "a" * 256}, "too_many_prompts", "text"),
    "an empty text": ({"image_id": "a", "text": "  "}, "invalid_request", "text"),
    "a threshold above one": (
        {"image_id": "a", "text": S, "text_threshold": 1.5},
        "invalid_request",
        "text_threshold",
    ),
    "max_masks without text": (
        {"image_id": "a", "everything": True, "max_masks": 3},
        "invalid_request",
        "max_masks",
    ),
    "multimask_output without prompts": (
        {"image_id": "a", "text": S, "multimask_output": True},
        "invalid_request",
        "multimask_output",
    ),
    "unknown proposals": (
        {"image_id": "a", "text": "a", "proposals": S},
        "invalid_request",
        "proposals",
    ),
    "unknown format": ({"image_id": "a", "text": "a", "format": S}, "unknown_format", "format"),
    "a format that is no text": (
        {"image_id": "a", "text": "a", "format": {S: S}},
        "unknown_format",
        "format",
    ),
    "too many points a side": (
        {"image_id": "a", "everything": {"points_per_side": 65}},
        "too_many_prompts",
        "everything.points_per_side",
    ),
    "no points a side": (
        {"image_id": "a", "everything": {"points_per_side": 0}},
        "invalid_request",
        "everything.points_per_side",
    ),
    "too many crop layers": (
        {"image_id": "a", "everything": {"crop_n_layers": 3}},
        "too_many_prompts",
        "everything.crop_n_layers",
    ),
    "a share above one": (
        {"image_id": "a", "everything": {"pred_iou_thresh": 2}},
        "invalid_request",
        "everything.pred_iou_thresh",
    ),
    "many members": (
        {"image_id": "a", "text": "a", **{S + str(i): 1 for i in range(99)}},
        "invalid_request",
        None,
    ),
    "not ASCII": ({"image": "é" + S, "text": "a"}, "invalid_request", "image"),
    "a long variant": (
        {"image_id": "a", "text": "a", "variant": S * 3},
        "invalid_request",
        "variant",
    ),
    "a bool as a number": (
        {"image_id": "a", "prompts": [{"box": [True, 2, 3, 4]}]},
        "invalid_prompt",
        "prompts[0].box[0]",
    ),
    **{
        f"{name} of {value!r}": (
            {"image_id": "a", "text": "a", name: value},
            "invalid_request",
            name,
        )
        for name, value in (
            ("max_latency_ms", 0),
            ("max_latency_ms", -5),
            ("max_latency_ms", 1e10),
            ("max_latency_ms", True),
            ("max_latency_ms", S),
            ("min_quality", 0),
            ("min_quality", 1.01),
            ("min_quality", [0.5]),
        )
    },
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_bad_json_bodies(client, service, fault):
    body, code, field = FAULTS[fault]
    answer = await client.post("/v1/segment", json=body)
    checked(answer, 422, code, field)
    assert service.requests == []


@pytest.mark.parametrize(
    "text",
    [
        f'{{"text": "{S}"',
        '{"image_id": "a", "prompts": [{"box": [NaN, 1, 2, 3]}]}',
        '{"image_id": "a", "prompts": [{"box": [Infinity, 1, 2, 3]}]}',
        '{"image_id": "a", "prompts": [{"box": [1e999, 1, 2, 3]}]}',
        '{"image_id": "a", "x": ' + "[" * 120 + "]" * 120 + "}",
        "[" * 100_000,
        b"\xff\xfe{}",
        "",
    ],
    ids=["cut", "nan", "infinity", "1e999", "depth 120", "depth 10^5", "utf-16", "empty"],
)
async def test_what_is_not_strict_json(client, text):
    headers = {"content-type": "application/json"}
    answer = await client.post("/v1/segment", content=text, headers=headers)
    checked(answer, 422, "invalid_request")


def test_few_bytes_that_become_many_values_are_refused_before_they_do():
    for container in (b"[],", b"{},"):
        with pytest.raises(errors.InvalidRequest, match="50000 lists and objects"):
            load_json(b"[" + container * 50_000 + b"0]", Limits())
        assert load_json(b"[" + container * 49_999 + b"0]", Limits())
    with pytest.raises(errors.InvalidRequest, match="300000 values"):
        load_json(b"[" + b"0," * 300_000 + b"0]", Limits())
    with pytest.raises(errors.InvalidRequest, match="members"):
        load_json(json.dumps([{str(i): 0 for i in range(65)}]), Limits())
    assert load_json(json.dumps({str(i): 0 for i in range(64)}), Limits())


def test_four_masks_may_come_as_nested_lists():
    mask = [[-12.34567] * 256] * 256
    assert load_json(json.dumps([{"mask_input": mask}] * 4), Limits())
    with pytest.raises(errors.InvalidRequest, match="send masks as base64"):
        load_json(json.dumps([{"mask_input": mask}] * 5), Limits())


@pytest.mark.parametrize("as_files", [False, True])
async def test_the_texts_of_a_form_share_their_bound(client, as_files):
    text = "[" + "[]," * 25_000 + "0]"
    files: dict[str, tuple[str | None, bytes | str]] = {"file": ("x", b"1")}
    for name in ("request", "requests") if as_files else ("box", "prompts"):
        files[name] = ("x" if as_files else None, text)
    answer = await client.post("/v1/segment", files=files)
    assert "more than 50000 lists and objects" in checked(answer, 422, "invalid_request")


@pytest.mark.parametrize(
    "content_type",
    [
        *("text/plain", "application/x-www-form-urlencoded", ""),
        "application/x-www-form-urlencoded; charset=punycode",
    ],
)
async def test_other_content_types(client, content_type):
    answer = await client.post(
        "/v1/segment", content=f"text={S}", headers={"content-type": content_type}
    )
    assert "application/json" in checked(answer, 422, "invalid_request")


async def test_a_compressed_body_is_refused(client):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    checked(await client.post("/v1/segment", content=b"x", headers=headers), 422, "invalid_request")


FORMS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "unknown field": ({S: S, "text": "a"}, "invalid_request", None),
    "box that is not JSON": ({"box": S}, "invalid_request", "box"),
    "box that is code": ({"box": "__import__('os').getcwd()"}, "invalid_request", "box"),
    "box twice": ({"box": ["[1,2,3,4]"] * 2}, "invalid_request", "box"),
    "a flag that is none": (
        {"box": "[1,2,3,4]", "return_logits": S},
        "invalid_request",
        "return_logits",
    ),
    "request that is no object": ({"request": "[]"}, "invalid_request", "request"),
    "request and field": ({"request": '{"text": "a"}', "text": "b"}, "invalid_request", "text"),
    "requests of a batch": ({"requests": '[{"text": "a"}]'}, "invalid_request", "requests"),
    "unknown format": ({"text": "a", "format": S}, "unknown_format", "format"),
    "deep": ({"everything": "[" * 120 + "]" * 120}, "invalid_request", "everything"),
    "box of two": ({"box": "[1,2]"}, "invalid_prompt", "box"),
    "outside": ({"box": "[9,9,1,1]"}, "invalid_prompt", "box"),
    "a time of none": ({"text": "a", "max_latency_ms": "0"}, "invalid_request", "max_latency_ms"),
    "a time in words": ({"text": "a", "max_latency_ms": S}, "invalid_request", "max_latency_ms"),
    "a time twice": (
        {"text": "a", "max_latency_ms": ["1", "2"]},
        "invalid_request",
        "max_latency_ms",
    ),
    "a quality of NaN": ({"text": "a", "min_quality": "NaN"}, "invalid_request", "min_quality"),
    "a quality above one": ({"text": "a", "min_quality": "80"}, "invalid_request", "min_quality"),
}


@pytest.mark.parametrize("fault", FORMS)
async def test_bad_forms(client, service, fault):
    fields, code, field = FORMS[fault]
    answer = await client.post("/v1/segment", files={"file": ("x", b"1")}, data=fields)
    checked(answer, 422, code, field)
    assert service.requests == []


async def test_an_empty_file(client):
    answer = await client.post("/v1/segment", files={"file": ("x", b"")}, data={"text": "a"})
    checked(answer, 400, "invalid_image", "file")


async def test_a_file_under_another_name(client):
    answer = await client.post("/v1/segment", files={S: (S, b"1")}, data={"text": "a"})
    assert "'file'" in checked(answer, 422, "invalid_request")


async def test_a_file_that_is_a_field(client):
    answer = await client.post("/v1/segment", files={"file": (None, S), "text": (None, "a")})
    checked(answer, 422, "invalid_request", "file")


async def test_two_files(client):
    files = [("file", ("x", b"1"))] * 2
    answer = await client.post("/v1/segment", files=files, data={"text": "a"})
    checked(answer, 422, "invalid_request", "file")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x\r\n\r\n"),
        ("multipart/form-data; boundary=x", b"nothing of a form"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--",
        ),
        (
            "multipart/form-data; boundary=x; charset=punycode",
            b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n\xff-\xff\r\n--x--',
        ),
    ],
    ids=["no boundary", "no form", "no name", "odd charset"],
)
async def test_broken_multipart(client, content_type, body):
    headers = {"content-type": content_type}
    checked(await client.post("/v1/segment", content=body, headers=headers), 422, "invalid_request")


PART = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'


def form(*parts: tuple[bytes, bytes], headers: bytes = b"") -> bytes:
    """A form with an image, and plain fields that all have the further ``headers``."""
    file = PART % (b"file", b'; filename="f"', b"1")
    return file + b"".join(PART % (name, headers, text) for name, text in parts) + b"--x--\r\n"


@pytest.mark.parametrize(
    "charset",
    [
        *("charset=punycode", "charset=idna", "charset=utf-7", "charset=utf-16", "charset=hex"),
        *("charset=zlib", "charset=unicode_escape", "charset=latin-1", "charset=", "charset=none"),
        *('charset="punycode"', "CHARSET=PunyCode", "charset = punycode"),
        *('charset="pun\\ycode"', "charset=utf-8; charset=punycode", 'a="; b"; charset=idna'),
    ],
)
async def test_a_form_names_no_codec(client, service, charset):
    """Some codecs of Python's take the square of a text's length: minutes for a megabyte."""
    body = form((b"text", b"dog"), (b"model_type", b"fast"))
    for kind in (
        f"multipart/form-data; boundary=x; {charset}",
        f"multipart/form-data; {charset}; boundary=x",
    ):
        headers = {"content-type": kind}
        answer = await client.post("/v1/segment", content=body, headers=headers)
        assert "UTF-8" in checked(answer, 422, "invalid_request")
        article = await client.post("/segment", content=body, headers=headers)
        assert "UTF-8" in checked(article, 400, "invalid_request")
    assert service.requests == []


@pytest.mark.parametrize("text", [b"c\xff\xfet", "k\u00f6ter".encode("latin-1"), b"\xed\xa0\x80"])
async def test_a_forms_fields_are_utf_8(client, service, text):
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = await client.post("/v1/segment", content=form((b"text", text)), headers=headers)
    assert "UTF-8" in checked(answer, 422, "invalid_request")
    assert service.requests == []


@pytest.mark.parametrize(
    "charset", ["", "; charset=utf-8", '; Charset="UTF-8"', "; charset=UTF8", "; charset=us-ascii"]
)
async def test_a_form_may_say_that_it_is_utf_8(client, service, charset):
    text = "dog" if "ascii" in charset else "köter"
    headers = {"content-type": f"multipart/form-data; boundary=x{charset}"}
    body = form((b"text", text.encode()))
    answer = await client.post("/v1/segment", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert service.requests[0].task.text == (text,)


@pytest.mark.parametrize(
    "headers",
    [
        b"\r\nContent-Type: text/plain; charset=punycode",
        b"\r\nContent-Transfer-Encoding: base64",
        b"; charset=punycode",
        b"; name*=punycode''text",
    ],
)
async def test_a_part_decides_nothing_of_how_it_is_read(client, service, headers):
    kind = {"content-type": "multipart/form-data; boundary=x; charset*=punycode''punycode"}
    body = form((b"text", "köter".encode()), headers=headers)
    answer = await client.post("/v1/segment", content=body, headers=kind)
    assert answer.status_code == 200, answer.text
    assert service.requests[0].task.text == ("köter",)


async def test_a_field_decides_nothing_of_how_others_are_read(client, service):
    kind = {"content-type": "multipart/form-data; boundary=x"}
    body = form((b"_charset_", b"punycode"), (b"box", b"[1, 2, 3, 4]"))
    checked(await client.post("/v1/segment", content=body, headers=kind), 422, "invalid_request")
    assert (await client.post("/segment", content=body, headers=kind)).status_code == 200


async def test_json_is_utf_8_whatever_its_charset_says(client, service):
    headers = {"content-type": "application/json; charset=punycode"}
    body = json.dumps({"image_id": "a", "text": "köter"}, ensure_ascii=False).encode()
    assert (await client.post("/v1/segment", content=body, headers=headers)).status_code == 200
    assert service.requests[0].task.text == ("köter",)


async def test_too_many_fields_and_files(client):
    fields = {"text": ["a"] * 200}
    answer = await client.post("/v1/segment", files={"file": ("x", b"1")}, data=fields)
    checked(answer, 422, "invalid_request")
    files = [("files", ("x", b"1"))] * 50
    answer = await client.post("/v1/segment/batch", files=files, data={"text": "a"})
    checked(answer, 422, "too_many_prompts")


class Stream:
    """A body without Content-Length that counts how much of it was taken."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self.taken = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self.chunks):
            self.taken += 1
            yield b"a" * 65536


@pytest.mark.parametrize(
    "content_type", ["application/json", "multipart/form-data; boundary=x"], ids=["json", "form"]
)
async def test_a_body_is_refused_while_it_arrives(client, content_type):
    stream = Stream(1000)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'

    async def body() -> AsyncIterator[bytes]:
        if "form" in content_type:
            yield head
        async for chunk in stream:
            yield chunk

    answer = await client.post(
        "/v1/segment", content=body(), headers={"content-type": content_type}
    )
    assert "4194304" in checked(answer, 413, "payload_too_large")
    assert stream.taken <= 66  # 4 MiB of 62


async def test_an_announced_size_is_refused_at_once(client):
    stream = Stream(1000)
    headers = {"content-type": "application/json", "content-length": str(1000 * 65536)}
    answer = await client.post("/v1/segment", content=aiter(stream), headers=headers)
    checked(answer, 413, "payload_too_large")
    assert stream.taken == 0
    headers["content-length"] = "9" * 5000
    answer = await client.post("/v1/segment", content=aiter(stream), headers=headers)
    checked(answer, 413, "payload_too_large")


async def test_no_such_route_and_no_such_method(client):
    checked(await client.get(f"/v1/{S}"), 404, "not_found")
    checked(await client.post("/v1/segment//", json={}), 404, "not_found")
    answer = await client.get("/v1/segment")
    checked(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def _all(kind: type[errors.SamServeError]) -> list[type[errors.SamServeError]]:
    return [kind, *(k for sub in kind.__subclasses__() for k in _all(sub))]


AGAIN = (errors.Overloaded, errors.RateLimited, errors.ReplicaLost, errors.ShuttingDown)
KINDS = [k for k in _all(errors.SamServeError) if k.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
async def test_errors_of_the_service_are_told_as_they_are(client, service, kind):
    service.failure = kind("a sentence", "image")
    for path in ("/v1/segment", "/v1/embed"):
        body = {"image_id": "a", **({"text": "dog"} if "segment" in path else {})}
        answer = await client.post(path, json=body)
        assert checked(answer, kind.status, kind.code, "image") == "a sentence"
        assert ("retry-after" in answer.headers) == (kind in AGAIN)


async def test_a_fault_of_ours_tells_nothing_and_is_logged(client, service, caplog, our_log):
    service.failure = RuntimeError(f"/srv/{SECRET} at 0x7fff")
    with caplog.at_level(logging.ERROR, "serve_app.http"):
        answer = await client.post("/v1/segment", json={"image_id": "a", "text": "a"})
    checked(answer, 500, "internal_error")
    assert "/srv" not in answer.text
    record = our_log()[-1]
    assert record.request_id == answer.headers["x-request-id"]
    assert record.exc_info[1] is service.failure


BY_US = [errors.ReplicaLost, errors.WeightsUnavailable]
BY_CALLERS = [errors.Overloaded, errors.DeadlineExceeded, errors.UnknownImage]


@pytest.mark.parametrize("path", ["/v1/segment", "/v1/segment/batch", "/segment", "/segment_batch"])
@pytest.mark.parametrize(
    "kind", [*BY_US, errors.Overloaded, errors.DeadlineExceeded, errors.UnknownImage]
)
async def test_on_every_route_the_log_has_the_cause_of_what_the_service_could_not_do(
    client, service, our_log, path, kind
):
    service.failure = kind("a sentence")
    name = "files" if "batch" in path else "file"
    fields = {"text": "dog"} if path.startswith("/v1") else {}
    answer = await client.post(path, files={name: ("x", b"1")}, data=fields)
    assert "a sentence" in answer.text
    causes = [r for r in our_log() if r.exc_info and r.exc_info[1] is service.failure]
    assert len(causes) == (kind in BY_US)
    assert all(answer.headers["x-request-id"] in record.getMessage() for record in causes)


async def test_a_cancelled_request_is_not_answered(app, service):
    """The server cancels a handler whose client has left: nothing may turn that into a 500."""
    entered = asyncio.Event()

    async def forever(request: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    service.hook = forever
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as client:
        body = {"image_id": "a", "text": "a"}
        asking = asyncio.create_task(client.post("/v1/segment", json=body))
        await entered.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


@pytest.mark.parametrize("sent", ["", "has spaces", "a" * 65, "new\tline", "é"])
async def test_a_request_id_that_is_not_plain_is_replaced(client, sent):
    answer = await client.get("/healthz", headers={"x-request-id": sent.encode()})
    assert answer.headers["x-request-id"] != sent
    assert len(answer.headers["x-request-id"]) == 32


async def test_a_plain_request_id_is_kept(client):
    for path, status in (("/healthz", 200), ("/nowhere", 404), ("/docs", 200)):
        answer = await client.get(path, headers={"x-request-id": "trace-1.a:b_c"})
        assert (answer.headers["x-request-id"], answer.status_code) == ("trace-1.a:b_c", status)
    assert answer.headers.get_list("x-request-id") == ["trace-1.a:b_c"]


async def test_nothing_of_a_long_body_comes_back(client):
    body = json.dumps({"image_id": "a", "prompts": [{"box": [SECRET * 10_000] * 4}]})
    headers = {"content-type": "application/json"}
    checked(
        await client.post("/v1/segment", content=body, headers=headers),
        422,
        "invalid_prompt",
        "prompts[0].box[0]",
    )


async def test_the_first_faulty_prompt_is_reported_and_ends_the_check(client):
    """A thousand prompts with dozens of faults each would hold the event loop for a second."""
    prompts = [PROMPT, 5, {"point_coords": 5}, {S: 1}]
    answer = await client.post("/v1/segment", json={"image_id": "a", "prompts": prompts})
    checked(answer, 422, "invalid_prompt", "prompts[1]")


@pytest.mark.parametrize("member", [S, "items", "mode"])
async def test_an_unknown_member_is_refused_even_if_it_is_null(client, member):
    body = {"image_id": "a", "text": "a", member: None}
    checked(await client.post("/v1/segment", json=body), 422, "invalid_request")


@pytest.mark.parametrize("member", ["variant", "format", "return_logits"])
async def test_what_has_a_default_is_not_null(client, member):
    body = {"image_id": "a", "text": "a", member: None}
    answer = await client.post("/v1/segment", json=body)
    code = "unknown_format" if member == "format" else "invalid_request"
    checked(answer, 422, code, member)


async def test_null_prompts_beside_texts_count_as_texts(client):
    item = {"image_id": "a", "prompts": None, "text": ["a"] * 1400}
    answer = await client.post("/v1/segment/batch", json={"items": [item] * 3})
    checked(answer, 422, "too_many_prompts")
