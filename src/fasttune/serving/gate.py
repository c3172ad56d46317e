"""A thin ASGI layer before a server program: who may ask it, and what."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from fasttune.data.check import require_prompt
from fasttune.errors import FasttuneError
from fasttune.formats.jinja import variable_columns
from fasttune.formats.row import Row
from fasttune.formats.template import Template, from_declaration
from fasttune.models.tokenizer import saved_tokenizer

MODELS, CHAT = "/v1/models", "/v1/chat/completions"
LARGEST_BODY = 2**20
"""Bytes of a request."""

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Count = Annotated[int, msgspec.Meta(ge=1, le=10**6)]
Stop = Annotated[str, msgspec.Meta(min_length=1)]


class TextPart(msgspec.Struct):
    """A part of a message; the format holds no images."""

    type: Literal["text"]
    text: str


class Message(msgspec.Struct):
    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        content = self.content
        return content if isinstance(content, str) else "".join(part.text for part in content)


class Request(msgspec.Struct):
    """The fields of a chat completion that are checked; the engine gets the others as they are."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    model: str | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None
    stop: Stop | list[Stop] | None = None
    stream: bool | None = None
    n: Literal[1] | None = None
    chat_template_kwargs: dict[str, str] | None = None
    tools: Annotated[list[Any], msgspec.Meta(max_length=0)] | None = None
    generation_config: None = None


class Facts(msgspec.Struct):
    """What a gate knows of the run.

    Attributes:
        model: the name that requests give.
        hosts: names by which clients may call the server; None for any.
        template: the declaration of the format; None if its text is computed.
        eos: the text that ends a turn.
        tokenizer: folder of the run's tokenizer.
        chat_template: the export's.
        longest: tokens of a prompt with its answer.
        paths: which are passed on, besides `CHAT`.
    """

    model: str
    hosts: list[str] | None
    template: dict[str, Any] | None
    eos: str
    tokenizer: str
    chat_template: str
    longest: int
    paths: list[str]


class Refused(Exception):
    """A request that is answered with a status and a reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Gate:
    """An ASGI application before another. `/health` and `/v1/models` it answers itself."""

    def __init__(self, app: Any, facts: Facts) -> None:
        self.app, self.facts = app, facts
        self.template = None if facts.template is None else from_declaration(facts.template)
        self.tokenizer = saved_tokenizer(Path(facts.tokenizer))

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            try:
                self._require_host(scope)
                await self._route(scope, receive, send)
            except Refused as refused:
                kind = "server_error" if refused.status >= 500 else "invalid_request_error"
                error = {"message": str(refused), "type": kind, "code": refused.status}
                await _answer(send, {"error": error}, refused.status)

    async def _route(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        path, facts = scope["path"], self.facts
        methods = {"/health": "GET", MODELS: "GET", CHAT: "POST"}
        methods |= dict.fromkeys(facts.paths, "POST")
        if path not in methods:
            raise Refused(404, f"there is no {path} here, only {', '.join(methods)}")
        if scope["method"] != methods[path]:
            raise Refused(405, f"{path} takes {methods[path]}, not {scope['method']}")
        if path == "/health":
            await _answer(send, {"status": "ok"})
        elif path == MODELS:
            model = {"id": facts.model, "object": "model", "created": 0, "owned_by": "fasttune"}
            await _answer(send, {"object": "list", "data": [model]})
        else:
            body = json.dumps(self._checked(await _read(scope, receive))).encode()
            own = (b"content-length", b"content-type", b"transfer-encoding")
            headers = [header for header in scope["headers"] if header[0].lower() not in own]
            headers += _headers(body)
            whole = [{"type": "http.request", "body": body, "more_body": False}]

            async def replay() -> dict[str, Any]:
                return whole.pop() if whole else await receive()

            await self.app({**scope, "headers": headers}, replay, send)

    def _require_host(self, scope: Mapping[str, Any]) -> None:
        """Refuse a name or a page of another site, which a browser may have been led to send."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = _host(f"//{headers.get(b'host', '')}")
        if self.facts.hosts is not None and host not in self.facts.hosts:
            raise Refused(403, f"the host {host!r} is not served: start with --host to allow it")
        if (origin := headers.get(b"origin")) and _host(origin) not in (host, "localhost"):
            raise Refused(403, f"requests from pages of {origin!r} are not answered")

    def _checked(self, content: bytes) -> dict[str, Any]:
        """The body of a request for the engine. What the format cannot hold is refused."""
        try:
            body = json.loads(content.decode(), parse_constant=_no_number)
            json.dumps(body, ensure_ascii=False).encode()
            asked = msgspec.convert(body, Request)
        except UnicodeError as error:
            raise Refused(400, f"the text is not valid Unicode: {error}") from error
        except msgspec.ValidationError as error:
            raise Refused(400, str(error)) from error
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}") from error
        facts, most = self.facts, asked.max_tokens or asked.max_completion_tokens
        if asked.model not in (None, facts.model):
            raise Refused(404, f"there is no model {asked.model!r} here, only {facts.model!r}")
        messages = [{"role": each.role, "content": each.text} for each in asked.messages]
        variables = asked.chat_template_kwargs or {}
        if self.template is not None:
            self._require_fit(self.template, messages, variables)
        tokens = self._tokens(messages, variables) + (most or 1)
        if tokens > facts.longest:
            raise Refused(
                400, f"prompt and answer have {tokens} tokens, and at most {facts.longest} fit"
            )
        kept = {key: value for key, value in body.items() if value not in (None, [])}
        return kept | {"model": facts.model, "messages": messages} | _set(max_tokens=most)

    def _require_fit(
        self, template: Template, messages: Sequence[Mapping[str, str]], variables: dict[str, str]
    ) -> None:
        """Refuse what could not be a row of the format."""
        system, talk = "", list(messages)
        if talk[0]["role"] == "system":
            system = talk.pop(0)["content"]
            if "system" not in template.reads:
                raise Refused(400, f"the format '{template.name}' has no place for a system text")
        due = ("user", "assistant")
        if len(talk) % 2 == 0 or any(m["role"] != due[at % 2] for at, m in enumerate(talk)):
            raise Refused(400, "messages must be: system (or none), user, assistant, ..., user")
        allowed = variable_columns(template)
        if unknown := [name for name in variables if name not in allowed]:
            which = f"no variable {unknown[0]!r}, only {', '.join(allowed) or 'none'}"
            raise Refused(400, f"chat_template_kwargs: the format has {which}")
        earlier = []
        for asked, answered in zip(talk[:-1:2], talk[1::2], strict=True):
            sections = template.parse(answered["content"])
            columns = {template.targets[name]: text for name, text in sections.items()}
            earlier.append({"instruction": asked["content"], **columns})
        last = {**_set(system=system), **variables, "instruction": talk[-1]["content"]}
        try:
            require_prompt(Row.of(last, earlier), template, self.facts.eos)
        except FasttuneError as error:
            raise Refused(400, "; ".join((error.where or str(error)).splitlines())) from error

    def _tokens(self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, str]) -> int:
        from jinja2.exceptions import TemplateError

        try:
            ids = self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.facts.chat_template,
                add_generation_prompt=True,
                return_dict=False,
                **variables,
            )
        except (TemplateError, TypeError) as error:
            raise Refused(400, f"the chat template refuses this: {error}") from error
        return len(ids)


def _set(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _headers(body: bytes) -> list[tuple[bytes, bytes]]:
    size = str(len(body)).encode()
    return [(b"content-type", b"application/json"), (b"content-length", size)]


async def _read(scope: Mapping[str, Any], receive: Receive) -> bytes:
    """The body of a request, if it is not too large."""
    content = b""
    while True:
        message = await receive()
        content += message.get("body", b"")
        if len(content) > LARGEST_BODY:
            raise Refused(413, f"a request has at most {LARGEST_BODY:,} bytes")
        if not message.get("more_body"):
            return content


async def _answer(send: Send, value: Any, status: int = 200) -> None:
    body = json.dumps(value).encode()
    await send({"type": "http.response.start", "status": status, "headers": _headers(body)})
    await send({"type": "http.response.body", "body": body})
