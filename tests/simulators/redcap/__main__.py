"""`python -m tests.simulators.redcap`: two fictional studies behind obviously fake tokens."""

from __future__ import annotations

import argparse
import signal
import threading
from zoneinfo import ZoneInfo

from tests.simulators.redcap import RedcapSimulator, classic_study, enrol, longitudinal_study

ASTHMA_TOKEN = "FAKEASTHMATOKEN00000000000000000"
SLEEP_TOKEN = "FAKESLEEPTOKEN000000000000000000"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulators.redcap", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8900)
    parser.add_argument("--records", type=int, default=20, help="records in each study")
    parser.add_argument("--asthma-token", default=ASTHMA_TOKEN)
    parser.add_argument("--sleep-token", default=SLEEP_TOKEN)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds per call")
    parser.add_argument("--seconds-per-record", type=float, default=0.0, help="seconds per record written")
    parser.add_argument("--requests-per-minute", type=int, help="more than this, and the address is banned")
    parser.add_argument("--time-zone", default="UTC", help="the server's, for log and dateRange")
    return parser.parse_args(arguments)


def demo_simulator(options: argparse.Namespace) -> RedcapSimulator:
    simulator = RedcapSimulator(
        {options.asthma_token: classic_study(), options.sleep_token: longitudinal_study()}
    )
    for project in simulator.projects.values():
        enrol(project, options.records)
    simulator.latency_seconds = options.latency
    simulator.seconds_per_record_written = options.seconds_per_record
    simulator.requests_per_minute = options.requests_per_minute
    simulator.time_zone = ZoneInfo(options.time_zone)
    return simulator


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with demo_simulator(options).serve(options.port, options.host) as server:
        print(f"REDCap simulator on {server.url}", flush=True)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()


if __name__ == "__main__":
    main()
