"A service on the dashboards: what it answers is there within a minute, in a real browser."
import re
import time

import httpx
import pytest
from conftest import until
from test_browser import Visit, chromium, some  # noqa: F401
from test_dash import Dash
from test_serve import customers, documents, inputs, made, own, serving  # noqa: F401
from test_serve_live import counted, folder  # noqa: F401

from scalai_nb.core.settings import Settings
from scalai_nb.data.table import Table
from scalai_nb.data.write import write

pytestmark = pytest.mark.slow


def test_live_traffic_is_on_the_pages_within_a_minute(folder, chromium):  # noqa: F811
    "Customers whose charge is twice what it was: the drift page says so, home and performance have the requests."
    known, settings = inputs(folder, "churn"), Settings(root=folder)
    write(customers().assign(period=lambda f: [f"2026-{8 + i % 3:02}" for i in f.index]), "clients", period="period",
          settings=settings)
    (folder/"models/churn.toml").write_text('table = "clients"\ntarget = "churn"\nignore = ["period"]\n')
    rows = documents(Table("customers", settings).arrow().slice(0, 600), known)
    for row in rows: row["charge"] = row["charge"] and 2*row["charge"]
    some(folder, "home", "drift", "performance")
    with serving(folder, "churn", "--workers", "1") as (url, _), Dash(folder) as dash:
        start = time.monotonic()
        for i in range(0, 600, 5):
            sent = httpx.post(f"{url}/models/churn/predict", json={"rows": rows[i:i + 5]})
            assert sent.status_code == 200
        assert until(lambda: counted(folder) == 600)
        with Visit(chromium, dash) as visit:
            visit.open("Drift")
            visit.page.locator("h2", has_text="against its reference").wait_for()
            visit.shot("serve-drift")
            assert re.search("600 rows so far: [^.]*charge[^.]* moved", visit.page.content())
            took = time.monotonic() - start
            assert "live" in visit.page.get_by_label("Window", exact=True).locator("option").last.inner_text()
        for app, text in (("Home", f"answers at {url}: 120 requests"), ("Performance", "Over HTTP")):
            with Visit(chromium, dash) as visit:
                visit.open(app, drawn=False)
                visit.until(lambda text=text: text in visit.page.content())
                visit.shot(f"serve-{app.lower()}")
    assert took < 60, took
