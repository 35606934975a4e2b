"""The page at /docs: the OpenAPI document, laid out for people. One file, no script, nothing from elsewhere.

Everything that comes out of the document goes through `escape`; the page's own style is allowed by its hash.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from html import escape
from importlib import resources
from string import Template
from typing import Any, TypeAlias

from server.routes import JSON_TYPE

Json: TypeAlias = Mapping[str, Any]
_STYLE = re.compile(rb"<style>(.*?)</style>", re.DOTALL)
FIELDS_SHOWN = 8
EXACT = 2**53 - 1  # as a bound it only says that JSON holds the number exactly
_HEADINGS = {
    "visitor": "Visitors",
    "site": "The protected site",
    "admin": "Operators",
    "health": "Health and metrics",
    "pages": "Pages",
    "documents": "This contract",
}
_AUTH = {
    "queue_token": "Needs a <b>queue token</b>.",
    "site_key": "Needs a <b>site key</b>.",
    "admin_key": "Needs an <b>admin key</b>.",
}


def content_security_policy(html: bytes, *, form_action: str = "'none'") -> str:
    """Return the policy of a page: its own style, forms to where it says, and nothing else."""
    style = _STYLE.search(html)
    allowed = f"'sha256-{b64encode(sha256(style.group(1)).digest()).decode()}'" if style else "'none'"
    others = f"base-uri 'none'; form-action {form_action}; frame-ancestors 'none'"
    return f"default-src 'none'; style-src {allowed}; {others}"


def render_page(document: Json) -> bytes:
    """Return the page of a document."""
    template = Template(resources.files("server").joinpath("pages/docs.html").read_text("utf-8"))
    groups, schemas = _by_tag(document), document["components"]["schemas"]
    page = template.substitute(
        title=escape(document["info"]["title"]),
        version=escape(document["info"]["version"]),
        about=_inline(document["info"]["description"]),
        navigation="".join(_navigation(tag, operations) for tag, operations in groups.items()),
        operations="".join(_section(tag, operations, schemas) for tag, operations in groups.items()),
        schemas="".join(_schema(name, schema) for name, schema in schemas.items()),
    )
    return page.encode()


class _Operation:
    """One operation with where it stands."""

    def __init__(self, path: str, method: str, facts: Json) -> None:
        self.path = path
        self.method = method.upper()
        self.facts = facts
        self.name: str = facts["operationId"]
        self.auth = next((name for needed in facts["security"] for name in needed), None)


def _by_tag(document: Json) -> dict[str, list[_Operation]]:
    groups: dict[str, list[_Operation]] = {}
    for path, methods in document["paths"].items():
        for method, facts in methods.items():
            groups.setdefault(facts["tags"][0], []).append(_Operation(path, method, facts))
    return groups


def _heading(tag: str) -> str:
    return escape(_HEADINGS.get(tag, tag.capitalize()))


def _navigation(tag: str, operations: Iterable[_Operation]) -> str:
    links = "".join(
        f'<li><a href="#{escape(op.name)}"><b class="{op.method.lower()}">{op.method}</b> {_path(op.path)}</a></li>'
        for op in operations
    )
    return f"<details open><summary>{_heading(tag)}</summary><ul>{links}</ul></details>"


def _path(path: str) -> str:
    """Return a path that may break at its slashes, without what all of its kind share."""
    short = path.replace("/v1/admin/events/{event_id}", "…").replace("/v1/events/{event_id}", "…")
    return escape(short if short != "…" else "…/{event_id}").replace("/", "<wbr>/")


def _section(tag: str, operations: Iterable[_Operation], schemas: Json) -> str:
    articles = "".join("".join(_article(operation, schemas)) for operation in operations)
    return f'<section><h2 id="tag-{escape(tag)}">{_heading(tag)}</h2>{articles}</section>'


def _article(op: _Operation, schemas: Json) -> Iterator[str]:
    facts, name = op.facts, escape(op.name)
    path = escape(op.path).replace("/", "<wbr>/")
    yield f'<article id="{name}"><h3><a href="#{name}">{escape(facts["summary"])}</a></h3>'
    yield f'<p class="call"><b class="{op.method.lower()}">{op.method}</b> <code>{path}</code></p>'
    auth = _AUTH[op.auth] if op.auth else "Open to everybody."
    place = " On the admin listener where there is one." if facts["x-listener"] == "admin" else ""
    yield f'<p class="auth">{auth}{place}</p>'
    yield from (f"<p>{_inline(text)}</p>" for text in facts.get("description", "").split("\n\n") if text)
    parameters = [one for one in facts["parameters"] if one["in"] != "path"]
    if parameters:
        yield _table("Parameters", (_parameter_row(one) for one in parameters))
    body = facts.get("requestBody")
    if body:
        (content,) = body["content"].values()
        yield _body(content["schema"], schemas)
    yield _answers(facts["responses"])
    yield f"<h4>Example</h4><pre><code>{escape(_curl(op))}</code></pre></article>"


def _body(reference: Json, schemas: Json) -> str:
    """Return the fields of a body, folded where they are many."""
    schema = schemas[reference["$ref"].rpartition("/")[2]]
    fields = _fields(schema)
    table = f"<table>{''.join(fields)}</table>"
    if not fields:
        table = "<p>An empty object, or nothing.</p>"
    elif len(fields) > FIELDS_SHOWN:
        table = f"<details><summary>{len(fields)} members</summary>{table}</details>"
    return f"<h4>Body</h4><p>{_inline(schema.get('description', ''))}</p>{table}"


def _parameter_row(parameter: Json) -> str:
    where = {"query": "query", "header": "header"}[parameter["in"]]
    about = parameter.get("description") or parameter["schema"].get("description", "")
    return _row(f"{parameter['name']}", f"{where} · {_type(parameter['schema'])}", about, parameter["required"])


def _table(caption: str, rows: Iterable[str]) -> str:
    return f"<h4>{escape(caption)}</h4><table>{''.join(rows)}</table>"


def _row(name: str, kind: str, about: str, required: bool) -> str:
    star = ' <i class="required">required</i>' if required else ""
    note = f"<br><span>{_inline(about)}</span>" if about else ""
    return f'<tr><th scope="row"><code>{escape(name)}</code>{star}</th><td>{kind}{note}</td></tr>'


def _answers(responses: Json) -> str:
    good, problems = [], []
    for status, response in responses.items():
        content = response.get("content", {})
        if "application/problem+json" in content:
            codes = escape(response["description"].partition(": ")[2])
            problems.append(f"<li><b>{escape(status)}</b> {codes}</li>")
            continue
        kinds = [f"{_type(body['schema'])} <small>{escape(kind)}</small>" for kind, body in content.items()]
        text = ", ".join(kinds) or escape(response["description"])
        good.append(f"<li><b>{escape(status)}</b> {text}</li>")
    return (
        f'<h4>Answers</h4><ul class="answers">{"".join(good)}</ul>'
        f'<details><summary>{len(problems)} problems</summary><ul class="answers">{"".join(problems)}</ul></details>'
    )


def _schema(name: str, schema: Json) -> str:
    about = f"<p>{_inline(schema['description'])}</p>" if schema.get("description") else ""
    table = f"<table>{''.join(_fields(schema))}</table>"
    return f'<article id="schema-{escape(name)}"><h3>{escape(name)}</h3>{about}{table}</article>'


def _fields(schema: Json) -> list[str]:
    required = schema.get("required", ())
    return [
        _row(field, _type(kind), kind.get("description") or _inner_description(kind), field in required)
        for field, kind in schema.get("properties", {}).items()
    ]


def _inner_description(schema: Json) -> str:
    return next((str(one["description"]) for one in schema.get("anyOf", ()) if "description" in one), "")


def _type(schema: Json) -> str:
    """Return a schema in words, bounds included."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        text = " or ".join(_type(one) for one in schema["anyOf"])
    elif "enum" in schema:
        text = "one of " + ", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    elif "const" in schema:
        text = f"<code>{escape(json.dumps(schema['const']))}</code>"
    elif schema.get("type") == "array":
        text = f"list of {_type(schema.get('items', {}))}{_most(schema, 'maxItems')}"
    else:
        text = escape(str(schema.get("type", "anything"))) + _bounds(schema)
    return text + _default(schema)


def _bounds(schema: Json) -> str:
    if "minimum" in schema or "maximum" in schema:
        low, high = schema.get("minimum"), schema.get("maximum")
        high = None if high == EXACT else high
        return f" {low:,}–{high:,}" if None not in (low, high) else f" ≥ {low:,}" if high is None else f" ≤ {high:,}"
    if "maxLength" in schema:
        return f", {schema.get('minLength', 0)}–{schema['maxLength']:,} characters"
    return _most(schema, "maxProperties")


def _most(schema: Json, name: str) -> str:
    return f", {schema[name]} at most" if name in schema else ""


def _default(schema: Json) -> str:
    default = schema.get("default")
    if default in (None, "", [], {}):
        return ""
    return f" <small>default <code>{escape(json.dumps(default))}</code></small>"


def _inline(text: str) -> str:
    """Return prose with `code` marked up."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _curl(op: _Operation) -> str:
    method = "" if op.method == "GET" else f" -X {op.method}"
    parts = [f"curl{method} https://queue.example{op.path.replace('{event_id}', 'e1')}"]
    if op.auth:
        parts.append(f'-H "Authorization: Bearer ${op.auth.upper()}"')
    if "Idempotency-Key" in {one["name"] for one in op.facts["parameters"]}:
        parts.append('-H "Idempotency-Key: $(uuidgen)"')
    if "text/event-stream" in op.facts["responses"].get("200", {}).get("content", {}):
        parts.append("-N -H 'Accept: text/event-stream'")
    if "requestBody" in op.facts:
        (kind,) = op.facts["requestBody"]["content"]
        example = _EXAMPLES.get(op.name, "{}" if kind == JSON_TYPE else "")
        parts.append(f"-H 'Content-Type: {kind}' -d '{example}'")
    return " \\\n  ".join(parts)


_EXAMPLES = {
    "page_join": "key=something-nobody-can-guess",
    "page_take_over": "code=the-code&key=something-nobody-can-guess",
    "join": '{"user_id": "u1"}',
    "heartbeat": '{"visible": true}',
    "complete": '{"user_id": "u1", "outcome": "completed"}',
    "put_event": '{"name": "Spring tour", "batch_size": 100, "batch_interval_s": 10, "max_active": 2000}',
    "patch_event": '{"batch_size": 50, "reason": "the checkout is slow"}',
    "pause_event": '{"reason": "the payment provider is down"}',
    "close_event": '{"reason": "sold out", "outcome": "sold_out"}',
    "release": '{"count": 50}',
    "tell": '{"text": "We are adding seats, please stay in line."}',
}
