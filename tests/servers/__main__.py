"""Fetch what the slow tests start, before they ask for it: `PYTHONPATH=tests python -m servers [--seaweed]`.

SeaweedFS takes many minutes to build; without `--seaweed` its tests are skipped where it was not built before."""
import sys

from servers import airflow, protocol_clients, weed
from servers.java import PROFILES, jars

print(airflow(), protocol_clients(), *map(jars, PROFILES), *([weed()] if "--seaweed" in sys.argv else []))
