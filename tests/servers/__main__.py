"Fetch what the slow tests start, before they ask for it: `PYTHONPATH=tests python -m servers`."
from servers import airflow, protocol_clients, weed
from servers.java import PROFILES, jars

print(airflow(), protocol_clients(), *map(jars, PROFILES), weed())
