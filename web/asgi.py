"""The web server's entry point: the application of `web.wsgi` in an event loop.

`web.wsgi:app` alone is for WSGI servers that buffer request bodies themselves.
"""

from web.request_buffering import RequestBuffering
from web.wsgi import app as flask_app

app = RequestBuffering(flask_app)
