"""The web server's entry point: the application of `web.wsgi` in an event loop.

`web.wsgi:app` alone is for WSGI servers that buffer request bodies themselves.
"""

import gc

from web.request_buffering import RequestBuffering
from web.wsgi import app as flask_app

app = RequestBuffering(flask_app)
# The collector need not look at modules, routes and configuration while requests wait.
gc.freeze()
