"""A REDCap for tests, the demo and benchmarks: a real HTTP server with the API's observed behaviour.

Built from public client libraries, their recorded answers and issue threads; comments name them.
Where no public source shows what REDCap does, the stricter reading was taken.
"""

from tests.simulators.redcap.faults import Fault
from tests.simulators.redcap.project import Access, Event, Field, Place, Project, Repeating, Rights
from tests.simulators.redcap.simulator import RedcapSimulator, Request
from tests.simulators.redcap.studies import (
    classic_study,
    enrol,
    fictional_phone,
    fictional_phone_as_typed,
    longitudinal_study,
    repeating_phone_study,
)

__all__ = [
    "Access",
    "Event",
    "Fault",
    "Field",
    "Place",
    "Project",
    "RedcapSimulator",
    "Repeating",
    "Request",
    "Rights",
    "classic_study",
    "enrol",
    "fictional_phone",
    "fictional_phone_as_typed",
    "longitudinal_study",
    "repeating_phone_study",
]
