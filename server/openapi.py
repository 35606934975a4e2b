"""The contract as OpenAPI 3.1 and as a page, both generated once from the route table and its types.

Nothing is written twice: bodies and answers are the types that decode and encode, and the problems an operation
may answer are those of its row plus those any row of its kind can give.
"""

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from types import UnionType
from typing import Any, TypeAlias, get_args

import msgspec

from engine.errors import STATUS_OF_CODE
from server.answers import HTML, Answer, Problem
from server.docs_page import content_security_policy, render_page
from server.routes import ANY, Auth, Call, Listener, Route

Json: TypeAlias = dict[str, Any]
REF = "#/components/schemas/{name}"
PROBLEM_TYPE = "application/problem+json"
EVENT_ID_SCHEMA: Json = {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,63}$"}
CACHED = b"Cache-Control: public, max-age=300\r\n"

HEADER_SCHEMAS: Mapping[str, Json] = {
    "Idempotency-Key": {"type": "string", "pattern": "^[!-~]{1,200}$"},
    "If-Match": {"type": "string", "pattern": '^"[0-9]{1,15}"$'},
}

SECURITY_SCHEMES: Json = {
    Auth.QUEUE_TOKEN.value: {
        "type": "http",
        "scheme": "bearer",
        "description": "The queue token that a join answered; the waiting page sends it as its cookie.",
    },
    Auth.SITE_KEY.value: {"type": "http", "scheme": "bearer", "description": "A key of the protected site."},
    Auth.ADMIN_KEY.value: {"type": "http", "scheme": "bearer", "description": "A key of an operator."},
}

ABOUT = (
    "Join a line, follow your place in it, be let in at the pace the site can bear. Times are Unix milliseconds "
    "(`*_ms`) or carry their unit. Errors are problem documents (RFC 9457) with a stable `code`."
)


def document_routes(routes: Sequence[Route], *, title_version: str) -> list[Route]:
    """Return the rows of /openapi.json and /docs for a table; `title_version` is such as "Stanchion 0.1.0"."""
    pages = _Pages()
    own = [
        Route(
            "GET",
            "/openapi.json",
            pages.openapi,
            "This contract as OpenAPI 3.1",
            {200: dict[str, Any]},
            listener=Listener.BOTH,
            tag="documents",
        ),
        Route(
            "GET",
            "/docs",
            pages.docs,
            "This contract as a page",
            {200: str},
            listener=Listener.BOTH,
            content_type="text/html",
            tag="documents",
        ),
    ]
    document = document_of([*routes, *own], title_version)
    pages.json = msgspec.json.encode(document)
    pages.html = render_page(document)
    return own


class _Pages:
    """Two texts, rendered at the start."""

    def __init__(self) -> None:
        self.json = b""
        self.html = b""

    async def openapi(self, call: Call) -> Answer:
        """Answer the document that tools read."""
        return Answer(200, self.json, headers=CACHED)

    async def docs(self, call: Call) -> Answer:
        """Answer the page that people read."""
        policy = f"Content-Security-Policy: {content_security_policy(self.html)}\r\n".encode()
        return Answer(200, self.html, HTML, CACHED + policy)


def document_of(routes: Sequence[Route], title_version: str) -> Json:
    """Return the OpenAPI document of a table."""
    title, _, version = title_version.rpartition(" ")
    schema_of, components = _schemas(routes)
    names = Counter(_name(route) for route in routes)
    paths: dict[str, Json] = {}
    for route in routes:
        operation = _operation(route, schema_of)
        if names[operation["operationId"]] > 1:
            operation["operationId"] = f"{route.tag}_{operation['operationId']}"
        method = "GET" if route.method == ANY else route.method
        paths.setdefault(route.path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": SECURITY_SCHEMES},
    }


def _name(route: Route) -> str:
    return str(getattr(route.handler, "__name__", route.summary))


def _schemas(routes: Iterable[Route]) -> tuple[Mapping[Any, Json], Json]:
    """Return the schema of every type the table names, and the components those refer to."""
    types: dict[Any, None] = {Problem: None}
    for route in routes:
        for kind in (*route.answers.values(), route.body_schema or route.body):
            types.update(dict.fromkeys(_members(kind)))
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    return dict(zip(types, schemas, strict=True)), components


def _members(kind: Any) -> Sequence[Any]:
    """Return the types a union is made of, the type itself where it is none, nothing for no body."""
    return get_args(kind) if isinstance(kind, UnionType) else () if kind is None else (kind,)


def _schema_of(kind: Any, schema_of: Mapping[Any, Json]) -> Json:
    schemas = [schema_of[member] for member in _members(kind)]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _operation(route: Route, schema_of: Mapping[Any, Json]) -> Json:
    operation: Json = {
        "operationId": _name(route),
        "summary": route.summary,
        "tags": [route.tag],
        "security": [] if route.auth is Auth.NONE else [{route.auth.value: []}],
        "parameters": [*_path_parameters(route), *_query_parameters(route), *_header_parameters(route)],
        "responses": _responses(route, schema_of),
        "x-listener": route.listener.value,
    }
    description = inspect.getdoc(route.handler)
    if description:
        operation["description"] = description
    body = route.body_schema or route.body
    if body is not None:
        operation["requestBody"] = {
            "required": bool(_required(body)),
            "content": {route.body_type: {"schema": _schema_of(body, schema_of)}},
        }
    return operation


def _required(struct: Any) -> list[str]:
    return [field.name for field in msgspec.structs.fields(struct) if field.required]


def _path_parameters(route: Route) -> list[Json]:
    if "{event_id}" not in route.path:
        return []
    return [{"name": "event_id", "in": "path", "required": True, "schema": EVENT_ID_SCHEMA}]


def _query_parameters(route: Route) -> list[Json]:
    if route.query is None:
        return []
    (_,), components = msgspec.json.schema_components([route.query], ref_template=REF)
    schema = components[route.query.__name__]
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _without_null(about)}
        for name, about in schema["properties"].items()
    ]


def _without_null(schema: Json) -> Json:
    """Return the schema of a parameter that may be left out, but is never null: a query has no null."""
    if "anyOf" not in schema:
        return schema
    choices = [choice for choice in schema["anyOf"] if choice != {"type": "null"}]
    kept = {name: value for name, value in schema.items() if name != "anyOf" and value is not None}
    return {**kept, **choices[0]} if len(choices) == 1 else {**kept, "anyOf": choices}


def _header_parameters(route: Route) -> list[Json]:
    return [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": about,
            "schema": HEADER_SCHEMAS.get(name, {"type": "string"}),
        }
        for name, about in route.headers.items()
    ]


def _responses(route: Route, schema_of: Mapping[Any, Json]) -> Json:
    responses: Json = {}
    for status, kind in sorted(route.answers.items()):
        response: Json = {"description": HTTPStatus(status).phrase}
        responses[str(status)] = response
        if kind is not None:
            response["content"] = {route.content_type: {"schema": _schema_of(kind, schema_of)}}
    for status in sorted(_problem_statuses(route) - route.answers.keys()):
        responses[str(status)] = _problem(status)
    return responses


def _problem_statuses(route: Route) -> set[int]:
    """Return the statuses of the problems a row may answer: its own, and those of its kind."""
    statuses = {400, 431, *route.problems}
    if "{event_id}" in route.path:
        statuses |= {404, 503}
    if route.body is not None:
        statuses |= {408, 413, 415, 417}
    if route.auth is not Auth.NONE:
        statuses |= {401, 429, 503}
    return statuses


def _problem(status: int) -> Json:
    codes = [code for code, its_status in STATUS_OF_CODE.items() if its_status == status]
    problem: Json = {
        "description": f"{HTTPStatus(status).phrase}: {', '.join(codes)}",
        "content": {PROBLEM_TYPE: {"schema": {"$ref": REF.format(name="Problem")}}},
    }
    if status in (429, 503):
        about = "Seconds after which a retry may help."
        problem["headers"] = {"Retry-After": {"description": about, "schema": {"type": "integer", "minimum": 1}}}
    return problem
