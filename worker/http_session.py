"""HTTP sessions that trust an institution's own certificate authority besides the public ones."""

import re
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from shared.causes import cause_in_words, host_and_port
from shared.config.certificates import ca_file, client_context
from shared.config.schema import LOOPBACK

Session = TypeVar("Session", bound=requests.Session)


class _TrustingAdapter(HTTPAdapter):
    """requests adds its own list of public authorities, or REQUESTS_CA_BUNDLE, to the context."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=client_context())

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, **kwargs, ssl_context=client_context())


def trusting(session: Session) -> Session:
    """The session, which from now on trusts `ca_file`, too."""
    if ca_file():
        session.mount("https://", _TrustingAdapter())
    return session


def get(url: str, **more: Any) -> requests.Response:
    """`requests.get`, with the trust of `trusting`."""
    return _once("get", url, **more)


def post(url: str, **more: Any) -> requests.Response:
    """`requests.post`, with the trust of `trusting`."""
    return _once("post", url, **more)


def failure_in_words(error: requests.RequestException, *, timeout_seconds: float) -> str:
    """The address without login and path, and why it gave no answer."""
    cause = cause_in_words(error, timeout_seconds=timeout_seconds)
    url = error.request.url if error.request else None
    return f"{host_and_port(url)}: {cause}" if url else cause


def _exceptions(url: str) -> dict[str, str]:
    """No proxy leads to this machine, nor to a name without a dot, such as another container."""
    host = urlsplit(url).hostname or ""
    return {"no_proxy": host} if host in LOOPBACK or not re.search("[.:]", host) else {}


def _once(method: str, url: str, **more: Any) -> requests.Response:
    more.setdefault("proxies", _exceptions(url))
    if not ca_file():
        response: requests.Response = getattr(requests, method)(url, **more)
        return response
    with trusting(requests.Session()) as session:
        return session.request(method, url, **more)
