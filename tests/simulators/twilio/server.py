"""The HTTP side: the REST APIs behind authentication, request log and faults, and the control API."""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, g, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.simulators.twilio.accounts import Account
from tests.simulators.twilio.control import ControlApi
from tests.simulators.twilio.faults import Fault, FaultKind, LoggedRequest
from tests.simulators.twilio.parameters import ApiError, not_found
from tests.simulators.twilio.rest_consents import ConsentsApi
from tests.simulators.twilio.rest_events import EventsApi
from tests.simulators.twilio.rest_messages import MessagesApi
from tests.simulators.twilio.rest_services import ServicesApi

if TYPE_CHECKING:
    from tests.simulators.twilio.simulator import TwilioSimulator

CUT = "simulator.cut"


@dataclass(frozen=True, slots=True)
class RunningServer:
    url: str
    port: int


@contextlib.contextmanager
def running_server(simulator: TwilioSimulator, host: str, port: int) -> Iterator[RunningServer]:
    simulator.stopping.clear()
    server = make_server(host, port, create_app(simulator), threaded=True, request_handler=_QuietHandler)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="twilio-simulator", daemon=True
    )
    thread.start()
    try:
        yield RunningServer(f"http://{host}:{server.server_port}", server.server_port)
    finally:
        simulator.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _QuietHandler(WSGIRequestHandler):
    """Keeps the terminal clean, and cuts a connection when a fault asks for it."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing: the simulator has its own request log."""

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        """After a cut there is no next request on this connection."""
        self.close_connection = True

    def finish(self) -> None:
        super().finish()
        if getattr(self, "environ", {}).get(CUT):
            # Lingering for zero seconds turns the close into a TCP reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def create_app(simulator: TwilioSimulator) -> Flask:
    """The Flask application: REST API, faults, request log, and the control API under /_sim/."""
    app = Flask("twilio_simulator")
    app.json.sort_keys = False  # type: ignore[attr-defined]  # the default provider has it
    apis = (MessagesApi, ServicesApi, EventsApi, ConsentsApi, ControlApi)
    routes = list(itertools.chain.from_iterable(api(simulator).routes() for api in apis))
    app.view_functions = {f"{method} {name}": handler for method, _, name, handler in routes}
    app.url_map = _url_map(tuple((path, method, f"{method} {name}") for method, path, name, _ in routes))
    app.before_request(lambda: _before(simulator))
    app.after_request(lambda response: _after(simulator, response))
    app.register_error_handler(ApiError, lambda error: error.response(as_problem=simulator.problem_details))
    app.register_error_handler(HTTPException, _http_error)
    return app


@functools.cache
def _url_map(routes: tuple[tuple[str, str, str], ...]) -> Map:
    """The addresses, of all simulators alike: to compile them takes longer than most tests."""
    return Map([Rule(path, methods=[method], endpoint=endpoint) for path, method, endpoint in routes])


def authenticate(simulator: TwilioSimulator) -> Account:
    credentials = request.authorization
    if credentials is None or credentials.type != "basic":
        raise ApiError(401, 20003, "Authenticate")
    for account in simulator.accounts.values():
        if account.accepts(credentials.username or "", credentials.password or ""):
            _require_permission(account, credentials.username or "")
            return account
    raise ApiError(401, 20003, "Authenticate")


def _require_permission(account: Account, user: str) -> None:
    if not account.permits(user, f"{request.method} {_resource()}"):
        raise ApiError(
            401, 70051, "Authorization Failed"
        )  # Twilio error 70051; its HTTP status is not documented


def _http_error(error: HTTPException) -> Response:
    if error.code == 404:
        return not_found().response()
    code = {405: 20004, 400: 20001}.get(error.code or 500, 20500)
    return ApiError(error.code or 500, code, error.name).response()


def _resource() -> str:
    name = (request.endpoint or "- unknown").partition(" ")[2]
    return name.replace("Senders", str((request.view_args or {}).get("part", "Senders")))


def _before(simulator: TwilioSimulator) -> ResponseReturnValue | None:
    if request.path.startswith("/_sim"):
        return None
    seen = LoggedRequest(
        request.method, _resource(), request.path, request.args.to_dict(), request.form.to_dict()
    )
    g.seen = seen
    simulator.request_log.append(seen)
    g.fault = simulator.take_fault(seen)
    if g.fault is not None and g.fault.kind is not FaultKind.TRUNCATED:
        return _fail(simulator, g.fault)
    g.account = authenticate(simulator)
    return None


def _fail(simulator: TwilioSimulator, fault: Fault) -> ResponseReturnValue:
    if fault.kind is FaultKind.HANG:
        simulator.stopping.wait(fault.seconds)
    if fault.kind in {FaultKind.HANG, FaultKind.RESET}:
        return Response(_cut(request.environ))
    code, text = {
        FaultKind.TOO_MANY: (20429, "Too Many Requests"),
        FaultKind.UNAVAILABLE: (20503, "Service Unavailable"),
        FaultKind.SERVER_ERROR: (20500, "Internal Server Error"),
        FaultKind.NOT_FOUND: (20404, "The requested resource was not found"),
    }[fault.kind]
    raise ApiError(int(fault.kind), code, text)


def _cut(environ: dict[str, Any]) -> Iterator[bytes]:
    """A response body that never begins: werkzeug takes the error for a client that went away."""
    environ[CUT] = True
    raise ConnectionResetError
    yield b""


def _after(simulator: TwilioSimulator, response: Response) -> Response:
    seen: LoggedRequest | None = g.get("seen")
    if seen is None:
        return response
    fault: Fault | None = g.get("fault")
    if fault is not None and fault.kind in {FaultKind.HANG, FaultKind.RESET}:
        return response
    seen.status = response.status_code
    if fault is not None and fault.kind is FaultKind.TRUNCATED:
        data = response.get_data()
        response.set_data(data[: len(data) // 2])
    return response
