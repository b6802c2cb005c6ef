"""Flower's settings; secrets and addresses come by FLOWER_* variables or options.

Flower shows project names and message SIDs, never a phone number: tasks carry nothing else.
"""

import sys

from shared.config import setting
from shared.errors import ConfigError
from shared.logs.setup import configure_logging

# Look, do not touch: no revoking, no pool sizes, no shutdown from a web page.
read_only = True
tasks_columns = "name,args,state,received,runtime,result,worker,uuid"
max_tasks = 10_000
natural_time = False
# "user:password", of pages and API alike; without it the API is closed, the pages are open. Flower never asks for it
# at /metrics (names and counts of workers and tasks) and /healthcheck. So it listens on loopback only, in any case.
try:
    if login := setting("OPTOUT_FLOWER_LOGIN"):
        basic_auth = [login]
except ConfigError as error:
    sys.exit(str(error))

# Lines like those of the other processes, in place of Tornado's own.
logging = "none"
configure_logging()
