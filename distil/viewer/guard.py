"""Who may ask the server, and what a browser may do with its pages.

A page that somebody else serves can make a browser ask any address, this one too. It cannot read the answer,
unless its own name leads here (DNS rebinding): so the `Host` that was asked for must be one of ours. And
nothing is changed but for a request that a page of ours has sent, which `Origin` or `Sec-Fetch-Site` say.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable
from html import escape
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
TOKEN = "token"  # in the first URL
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_MAX_PATH_CHARS = 2000
_READING = frozenset({"GET", "HEAD"})
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def new_token() -> str:
    """What a URL must hold to be answered, where others than this machine can ask."""
    return secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    """Whether only this machine itself can ask at an address."""
    address = _address(host)
    return in_url(host) in LOOPBACK_NAMES or (address is not None and address.is_loopback)


def is_every_address(host: str) -> bool:
    """Whether it stands for all addresses that this machine has."""
    address = _address(host)
    return address is not None and address.is_unspecified


def in_url(host: str) -> str:
    """An address as a URL and a `Host` header write it."""
    return f"[{host.lower()}]" if ":" in host else host.lower()


def allowed_names(host: str) -> frozenset[str]:
    """The names that a request to a server at `host` may ask for; "*" for any number of an address."""
    if is_every_address(host):
        return LOOPBACK_NAMES | {"*", socket.gethostname().lower(), socket.getfqdn().lower()}
    return LOOPBACK_NAMES | {in_url(host)}


class Guard:
    """Around an app: refuses foreign requests, and says with each answer what a browser may do with it."""

    def __init__(self, app: ASGIApp, names: Iterable[str], token: str | None, cookie: str) -> None:
        """`names` are what `allowed_names` gives; `cookie` is the name of that which keeps the token."""
        self._app, self._names, self._token, self._cookie = app, frozenset(names), token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-cache" if "etag" in headers else "no-store")
            await send(message)

        answer = self._refusal(scope) or self._token_answer(scope) or self._app
        await answer(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if not self._is_ours(host):
            return _refused("This server does not answer to that name (the Host header).")
        if len(scope["path"]) > _MAX_PATH_CHARS:
            return _refused("No page has an address that long.", 414)
        if scope["method"] in _READING:
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        is_ours = origin is not None or site is not None
        if origin is not None:
            is_ours = urlsplit(origin.lower())[:2] == ("http", host)
        if site is not None:
            is_ours = is_ours and site == "same-origin"
        return None if is_ours else _refused("Only this server's own pages may change anything.")

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match["name"]
        return name in self._names or ("*" in self._names and _address(name.strip("[]")) is not None)

    def _token_answer(self, scope: Scope) -> ASGIApp | None:
        """None where the token was given before, or none is needed."""
        if self._token is None:
            return None
        given = parse_qsl(scope["query_string"].decode("latin-1"))
        cookies = cookie_parser(Headers(scope=scope).get("cookie", ""))
        if any(name == TOKEN and self._is_token(value) for name, value in given):
            rest = urlencode([(name, value) for name, value in given if name != TOKEN])
            return self._welcome(scope["path"] + (f"?{rest}" if rest else ""))
        if self._is_token(cookies.get(self._cookie, "")):
            return None
        return _refused("Open the URL that `distil view` printed: it holds the key to this page.", 401)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), (self._token or "").encode())

    def _welcome(self, target: str) -> ASGIApp:
        """Keeps the token and goes on without it, as a page: a browser keeps the cookie from a redirect that
        another site's link has led to.
        """
        target = escape("/" + target.lstrip("/\\"))
        page = HTMLResponse(
            f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={target}">'
            f'<title>distil</title><a href="{target}">Go on</a>'
        )
        page.set_cookie(self._cookie, self._token or "", httponly=True, samesite="strict")
        return page


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _refused(text: str, status: int = 403) -> ASGIApp:
    return PlainTextResponse(text + "\n", status_code=status)
