"""The server's entry point: the application of `web.wsgi`, which gets its requests whole.

`web.wsgi:app` alone is for servers that wait for a request's body themselves.
"""

from web.request_buffering import WholeRequests
from web.wsgi import app as flask_app

app = WholeRequests(flask_app)
