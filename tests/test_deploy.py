"""What `scalai deploy` writes: valid files without a secret, the same bytes for the same settings, and no edit of a
person is lost."""
import shutil
import subprocess
import tempfile
from pathlib import Path

import compose_spec
import kubernetes_validate
import pytest
import yaml
from conftest import here
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from scalai_nb.core.settings import Settings
from scalai_nb.deploy.compose import compose_files
from scalai_nb.deploy.files import File, plan, read_stamp
from scalai_nb.deploy.kubernetes import OVERLAYS, PAUSE, kubernetes_files
from scalai_nb.deploy.proxy import proxy_files
from scalai_nb.deploy.services import services
from scalai_nb.deploy.systemd import systemd_files

FILES = {"settings.ini": "[deploy]\nserve_min = 2\n", "tables/customers.toml": 'source = "data/*.csv"\n',
         "tables/clicks.toml": 'source = "kafka://broker:9092/clicks"\n',
         "models/churn.toml": 'table = "customers"\ntarget = "churn"\n', "contracts/customers.yaml": "columns: {}\n"}


def put(root: Path) -> Path:
    for path, text in FILES.items():
        (root/path).parent.mkdir(parents=True, exist_ok=True)
        (root/path).write_text(text)
    return root


@pytest.fixture
def late(tmp_path, monkeypatch) -> Path:
    "A workspace with a model, two tables, one of them fed by a topic, and a contract."
    monkeypatch.delenv("SCALAI_SETTINGS", raising=False)
    monkeypatch.chdir(put(tmp_path/"late"))
    return tmp_path/"late"


def everything(settings: Settings) -> dict[str, list[File]]:
    return {"systemd": systemd_files(settings), "compose": compose_files(settings, settings.root/"deploy"/"compose"),
            "kubernetes": kubernetes_files(settings),
            **{kind: proxy_files(kind, settings, "10.0.0.1:8000,10.0.0.2:8000") for kind in ("nginx", "haproxy")}}


def documents(files: list[File]) -> list[dict]:
    return [d for f in files if f.path.endswith(".yaml") and "kustomization" not in f.path
            and not f.path.startswith("base/contracts") for d in yaml.safe_load_all(f.text)]


def programs(*names: str):
    for name in names: assert shutil.which(name), f"{name} is not installed; .ci/run names its package"


# --- files

def test_a_second_run_changes_nothing_and_an_edit_is_never_lost(late):
    first = here("deploy", "kubernetes", "--json").doc
    assert len(first["written"]) > 20 and first["unchanged"] == []
    bytes_ = {p: p.read_bytes() for p in (late/"deploy").rglob("*") if p.is_file()}
    again = here("deploy", "kubernetes", "--json").doc
    assert again["written"] == [] and sorted(again["unchanged"]) == first["written"]
    assert here("deploy", "kubernetes", "--diff").code == 0
    edited, fresh = late/"deploy/kubernetes/base/serve.yaml", late/"deploy/kubernetes/overlays/laptop/namespace.yaml"
    edited.write_text(edited.read_text().replace("cpu: 1000m", "cpu: 4000m"))
    fresh.unlink()
    refused = here("deploy", "kubernetes")
    assert refused.code == 2 and len(refused.err.splitlines()) == 2 and "base/serve.yaml" in refused.err
    assert not fresh.exists()  # nothing at all was written
    shown = here("deploy", "kubernetes", "--diff", "--json")
    assert shown.code == 1 and shown.doc["edited"] == ["base/serve.yaml"] and "-            requests: {cpu: 4000m" in (
        shown.doc["diff"])
    assert "4000m" in edited.read_text()
    assert here("deploy", "kubernetes", "--force", "--json").doc["written"] == [
        "base/serve.yaml", "overlays/laptop/namespace.yaml"]
    assert {p: p.read_bytes() for p in bytes_} == bytes_


def test_what_is_not_needed_any_more_goes_unless_it_was_edited(late):
    assert here("deploy", "systemd").code == 0
    folder = late/"deploy"/"systemd"
    (folder/"late-tracking.service").write_text((folder/"late-tracking.service").read_text() + "# mine\n")
    (folder/"notes.txt").write_text("mine")
    shutil.copytree(folder, late/"deploy"/"copy")
    (late/"settings.ini").write_text("[deploy]\ntracking = false\n")
    done = here("deploy", "systemd", "--json").doc
    assert done["removed"] == ["late-serve@.service"] and done["kept"] == ["late-tracking.service"]
    assert (folder/"notes.txt").exists() and (late/"deploy/copy/late-serve@.service").exists()
    for out in ("deploy", "deploy/systemd"):  # above it, and in it: the files of another kind stay
        assert here("deploy", "compose", "--out", out, "--json").doc["removed"] == []
    assert (folder/"late-serve.service").exists()


def test_a_file_that_is_not_generated_is_not_overwritten(late):
    (late/"deploy"/"nginx").mkdir(parents=True)
    (late/"deploy"/"nginx"/"nginx.conf").write_text("events {}\n")
    assert here("deploy", "nginx").code == 2
    assert (late/"deploy"/"nginx"/"nginx.conf").read_text() == "events {}\n"


@given(about=st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=30),
       body=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=200),
       more=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1, max_size=20))
def test_every_edit_is_noticed(about, body, more):
    file = File("a.conf", about, body)
    assert read_stamp(file.text) == ("files", "a.conf", True) and not read_stamp(file.text + more).unedited


@pytest.mark.parametrize(("words", "message"), [
    (["chef"], "chef"), (["haproxy"], "nothing to balance"), (["haproxy", "--replicas", "a:1"], "nothing to balance"),
    (["haproxy", "--replicas", "here"], "expected HOST:PORT"), (["compose", "--replicas", "a:1,b:1"], "--replicas")],
    ids=str)
def test_what_cannot_be_written_is_refused_in_two_lines(late, words, message):
    (late/"settings.ini").write_text("")
    done = here("deploy", *words)
    assert done.code == 2 and message in done.err and len(done.err.splitlines()) == 2, done.err
    assert not (late/"deploy").exists()


# --- secrets

@examples(max_examples=10, deadline=None)
@given(secret=st.from_regex(r"[A-Za-z0-9_.~-]{16,40}", fullmatch=True))
def test_no_secret_is_in_any_file(secret):
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(root=put(Path(folder)/"late"), apps={"token": secret, "viewer_token": secret},
                            serve={"tokens": f"web:{secret}"}, data={"storage": f"s3://key:{secret}@store/tables"},
                            jobs={"database": f"postgresql://ann:{secret}@db/jobs"},
                            alerts={"slack": f"https://hooks.example/{secret}", "email": f"smtp://a:{secret}@mail",
                                    "webhook": f"https://hooks.example/?token={secret}", "email_password": secret},
                            deploy={"tracking_store": f"postgresql://ann:{secret}@db/mlflow"})
        files = everything(settings)
        for kind, made in files.items(): assert not [f.path for f in made if secret in f.text], kind
        pod = next(d for d in documents(files["kubernetes"]) if d["kind"] == "Deployment"
                   and d["metadata"]["name"] == "dash")["spec"]["template"]["spec"]["containers"][0]
        names = {e["name"] for e in pod["env"]}
        assert {"SCALAI_APPS__TOKEN", "SCALAI_JOBS__DATABASE", "SCALAI_DATA__STORAGE"} <= names


def test_a_password_in_a_table_file_is_refused(late):
    (late/"tables"/"rows.toml").write_text('source = "postgresql://ann:hunter2@db/shop?table=rows"\n')
    done = here("deploy", "kubernetes")
    assert done.code == 2 and "tables/rows.toml has a password" in done.err and "hunter2" not in done.err


# --- every kind is valid

def test_units_are_units(late):
    programs("systemd-analyze")
    assert here("deploy", "systemd").code == 0
    found = sorted(map(str, (late/"deploy"/"systemd").glob("*.[st]*")))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *found],
                          capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_a_compose_project_is_one(late):
    settings = Settings.load(late)
    text = compose_files(settings, late/"deploy"/"compose")[0].text
    project = yaml.safe_load(text)
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(project))  # it reads no merge keys
    for s in services(settings):
        found = project["services"][s.name]
        assert found["read_only"] and found["cap_drop"] == ["ALL"] and found["user"] == "10001:10001"
        assert int(found["stop_grace_period"][:-1]) > s.grace and found["healthcheck"]["test"][0] == "CMD"
    (late/"haproxy.cfg").write_text(next(f.text for f in compose_files(settings, late) if f.path == "haproxy.cfg"))
    programs("haproxy")
    subprocess.run(["haproxy", "-c", "-f", late/"haproxy.cfg"], check=True, capture_output=True)
    assert project["services"]["tracking"]["depends_on"]["database"] == {"condition": "service_healthy"}


def test_manifests_are_valid_and_a_pod_has_time_to_end(late):
    settings = Settings.load(late)
    found = documents(kubernetes_files(settings))
    for d in found:
        if d["apiVersion"].startswith(("keda.sh", "kustomize")): continue
        kubernetes_validate.validate(d, "1.34", strict=True)
    kinds = {(d["kind"], d["metadata"]["name"]) for d in found}
    assert {("HorizontalPodAutoscaler", "serve"), ("ScaledObject", "serve"), ("PodDisruptionBudget", "serve"),
            ("PersistentVolumeClaim", "state"), ("CronJob", "train-churn"), ("NetworkPolicy", "default-deny")} <= kinds
    pods = {d["metadata"]["name"]: d["spec"]["template"]["spec"] for d in found if d["kind"] == "Deployment"}
    for s in services(settings):
        assert pods[s.name]["terminationGracePeriodSeconds"] > PAUSE + s.grace
        assert pods[s.name]["securityContext"]["runAsNonRoot"]
        assert pods[s.name]["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl, which applies overlays, is not installed")
def test_an_overlay_is_applied_to_its_base(late, overlay):
    "The names of ConfigMaps change with their content, everywhere at once."
    assert here("deploy", "kubernetes").code == 0
    def build() -> list[dict]:
        done = subprocess.run(["kubectl", "kustomize", str(late/"deploy/kubernetes/overlays"/overlay)],
                              capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return list(yaml.safe_load_all(done.stdout))
    def mounted(found: list[dict]) -> str:
        serve = next(d for d in found if d["kind"] == "Deployment" and d["metadata"]["name"] == "serve")
        volumes = serve["spec"]["template"]["spec"]["volumes"]
        return next(v["configMap"]["name"] for v in volumes if v["name"] == "models")
    found = build()
    for d in found: kubernetes_validate.validate(d, "1.34", strict=True)
    assert mounted(found) in {d["metadata"]["name"] for d in found if d["kind"] == "ConfigMap"}
    assert ("HorizontalPodAutoscaler" in {d["kind"] for d in found}) == (overlay != "laptop")
    (late/"models"/"churn.toml").write_text(FILES["models/churn.toml"] + "[serve]\nwait_ms = 1\n")
    assert here("deploy", "kubernetes").code == 0
    assert mounted(build()) != mounted(found)


@pytest.mark.parametrize(("kind", "check"), [("nginx", ["nginx", "-t", "-p", ".", "-c", "nginx.conf"]),
                                             ("haproxy", ["haproxy", "-c", "-f", "haproxy.cfg"])])
def test_a_proxy_reads_its_file(late, kind, check, monkeypatch):
    programs(kind)
    monkeypatch.setenv("SCALAI_SERVE__PORT", "38017")  # nginx opens the ports to check them
    assert here("deploy", kind, "--dash-port", "38018", "--listen", "127.0.0.3").code == 0
    done = subprocess.run(check, cwd=late/"deploy"/kind, capture_output=True, text=True)
    assert done.returncode == 0 and "warn" not in done.stderr.lower(), done.stderr


def test_the_same_settings_give_the_same_bytes(late):
    settings = Settings.load(late)
    assert everything(settings) == everything(Settings.load(late))
    for files in everything(settings).values():
        assert len({f.path for f in files}) == len(files)
        for f in files: assert f.text.startswith("# ") and f.text.endswith("\n"), f.path
        assert not plan(files, late/"nothing").changed
