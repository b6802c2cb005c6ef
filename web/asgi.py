"""The web server's entry point: the application of `web.wsgi` in an event loop.

`web.wsgi:app` alone is for WSGI servers that buffer request bodies themselves.
"""

from importlib import import_module

from shared.logs.lean import leave_out_rich
from web.request_buffering import RequestBuffering

leave_out_rich()
app = RequestBuffering(import_module("web.wsgi").app)
