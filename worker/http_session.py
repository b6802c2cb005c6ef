"""HTTP sessions that trust an institution's own certificate authority besides the public ones."""

from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter

from shared.config.certificates import ca_file, client_context

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


def _once(method: str, url: str, **more: Any) -> requests.Response:
    if not ca_file():
        response: requests.Response = getattr(requests, method)(url, **more)
        return response
    with trusting(requests.Session()) as session:
        return session.request(method, url, **more)
