"""The chart renders what a cluster accepts and the service understands, and refuses what would not work."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

import sana_service
from deploy.grafana.dashboard import metric_names
from deploy.helm import readme
from sana_service import tracing
from sana_service.http.routes import allowed_methods
from sana_service.metrics import catalogue
from sana_service.settings import Settings, load_settings
from tests.deploy.tools import DEPLOY, run, tool
from tests.services import REPOSITORY

CHART = DEPLOY / "helm" / "sana"
VALUE_SETS = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
SCHEMAS = Path(__file__).with_name("schemas")
# The oldest version that the chart names, and the newest that there are schemas of.
KUBERNETES = ("1.30", "1.37")

Object = dict[str, Any]


def helm(*arguments: str) -> Any:
    return run([tool("helm"), *arguments])


@cache
def render(values: str, *more: str) -> dict[str, Object]:
    """The objects of a value set by kind; there is one of each, but for ConfigMaps."""
    rendered = helm("template", "drawing", str(CHART), "--namespace=art", f"--values={CHART}/ci/{values}.yaml", *more)
    assert rendered.returncode == 0, rendered.stderr
    objects = [one for one in yaml.safe_load_all(rendered.stdout) if one]
    named = {one["kind"] if not one["metadata"]["name"].endswith("-dashboard") else "Dashboard": one for one in objects}
    assert len(named) == len(objects)
    return named


def pod(values: str) -> Object:
    spec: Object = render(values)["Deployment"]["spec"]["template"]["spec"]
    return spec


def container(values: str) -> Object:
    [one] = pod(values)["containers"]
    assert isinstance(one, dict)
    return one


def environment(values: str) -> dict[str, str]:
    """What the container's variables are, a secret's content stood for by a name."""
    objects = render(values)
    variables = dict(objects["ConfigMap"]["data"])
    assert all(isinstance(value, str) for value in variables.values()), "YAML reads off and numbers otherwise"
    for one in container(values).get("env", ()):
        variables[one["name"]] = one.get("value", "redis://:from-a-secret@redis/0")
    return variables


def test_there_are_enough_value_sets():
    assert len(VALUE_SETS) >= 6
    kinds = {kind for values in VALUE_SETS for kind in render(values)}
    templates = {path.stem for path in (CHART / "templates").glob("*.yaml")}
    assert len(kinds) == len(templates), "a template that no value set renders is not checked"


@pytest.mark.parametrize("values", VALUE_SETS)
def test_helm_finds_no_fault(values: str):
    linted = helm("lint", "--strict", str(CHART), f"--values={CHART}/ci/{values}.yaml")
    assert linted.returncode == 0, linted.stdout
    assert "1 chart(s) linted, 0 chart(s) failed" in linted.stdout


def faults(one: Object, version: str) -> list[str]:
    """What is wrong with an object; an unknown kind is a fault, too."""
    vendored = SCHEMAS / f"{one['kind']}.json"
    if vendored.exists():
        schema = json.loads(vendored.read_text())
        if not schema["$comment"].startswith(f"{one['apiVersion']} {one['kind']},"):
            return [f"{one['apiVersion']} is not the schema's version"]
        return [error.message for error in Draft202012Validator(schema).iter_errors(one)]
    validator: Any = pytest.importorskip("kubernetes_validate", reason="make deploy-tools")
    try:
        validator.validate(one, version, strict=True)
    except (validator.ValidationError, validator.SchemaNotFoundError) as error:
        return [str(error.message)]
    return []


@pytest.mark.parametrize("values", VALUE_SETS)
@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_has_the_shape_that_the_cluster_wants(values: str, version: str):
    found = {kind: faults(one, version) for kind, one in render(values).items()}
    assert {kind: wrong for kind, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("Deployment", lambda one: one["spec"].update(replcas=2)),
        ("Deployment", lambda one: one["spec"]["template"]["spec"]["containers"][0].update(ports="3000")),
        ("ScaledObject", lambda one: one["spec"].update(pollinginterval=15)),
        ("ScaledObject", lambda one: one["spec"]["fallback"].update(behavior="hope")),
        ("ServiceMonitor", lambda one: one["spec"]["endpoints"][0].update(interval="often")),
        ("PrometheusRule", lambda one: one["spec"]["groups"][0]["rules"][0].pop("expr")),
        ("Service", lambda one: one.update(kind="Servce")),
    ],
)
def test_the_check_itself_finds_faults(kind: str, change: Any):
    broken = json.loads(json.dumps(render("scaled")[kind]))
    change(broken)
    assert faults(broken, KUBERNETES[-1])


@pytest.mark.parametrize("values", VALUE_SETS)
def test_the_service_understands_its_variables(values: str):
    variables = environment(values)
    settings = load_settings(variables)
    assert {name for name in variables if name.startswith("SANA_")} <= {
        f"SANA_{name.upper()}" for name in Settings.model_fields
    }
    assert settings.log_format == "json"
    assert variables["BENTOML_HOME"].startswith("/tmp/"), "the image's own is on the read-only file system"
    gpus = container(values)["resources"]["limits"].get("nvidia.com/gpu", 0)
    assert settings.devices == (tuple(f"cuda:{number}" for number in range(gpus)) or ("cpu",))


@pytest.mark.parametrize("values", VALUE_SETS)
def test_the_probes_ask_routes_that_there_are_and_leave_time(values: str):
    one = container(values)
    probes = {name: one[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    asked = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert asked == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert all("GET" in allowed_methods(path) for path in asked.values())
    assert probes["startup"]["failureThreshold"] * probes["startup"]["periodSeconds"] == 900
    assert one["ports"] == [{"name": "http", "containerPort": 3000}]


@pytest.mark.parametrize("values", VALUE_SETS)
def test_what_was_accepted_is_finished_within_the_grace_period(values: str):
    grace = pod(values)["terminationGracePeriodSeconds"]
    waits = container(values)["lifecycle"]["preStop"]["sleep"]["seconds"]
    timeout = load_settings(environment(values)).request_timeout_seconds
    assert grace == waits + timeout + 30
    assert waits > 2 * container(values)["readinessProbe"]["periodSeconds"]


def test_the_timeouts_before_the_service_are_longer_than_its_own():
    annotations = render("ingress")["Ingress"]["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert environment("ingress")["SANA_REQUEST_TIMEOUT_SECONDS"] == "120"
    assert annotations[f"{prefix}proxy-send-timeout"] == "130"
    assert annotations[f"{prefix}proxy-read-timeout"] == "600", "the operator's annotation wins"
    assert annotations[f"{prefix}proxy-body-size"] == "1m"
    queue, rest = render("http-route")["HTTPRoute"]["spec"]["rules"]
    assert rest["timeouts"] == {"request": "310s", "backendRequest": "310s"}
    assert queue["matches"] == [{"path": {"type": "PathPrefix", "value": "/queue"}}]
    assert queue["timeouts"]["request"] == "0s"


@pytest.mark.parametrize("values", VALUE_SETS)
def test_the_pods_keep_to_the_restricted_profile(values: str):
    """The Pod Security Standards' list for `restricted`, and a read-only root file system."""
    spec = pod(values)
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    for volume in spec["volumes"]:
        assert set(volume) - {"name"} <= allowed
    for one in spec["containers"] + spec.get("initContainers", []):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert {"mountPath": "/tmp", "name": "tmp"} in one["volumeMounts"]
        assert not [port for port in one.get("ports", ()) if "hostPort" in port]


@pytest.mark.parametrize("values", VALUE_SETS)
def test_secrets_are_named_and_never_written(values: str):
    assert "Secret" not in render(values)
    text = yaml.safe_dump_all(render(values).values())
    assert "stringData" not in text
    for one in pod(values)["containers"][0].get("env", ()):
        assert set(one) <= {"name", "value", "valueFrom"}
        assert ("KEY" in one["name"] and one["value"].startswith("/")) or "SANA_" in one["name"]


@pytest.mark.parametrize("values", ["one-gpu", "weights-per-pod", "scaled", "http-route", "ingress"])
def test_the_download_has_options_that_there_are_and_fills_what_is_read(values: str):
    from typer.main import get_command

    from sana_service.cli import app

    [init] = pod(values)["initContainers"]
    assert init["command"] == ["python", "-m", "sana_service", "download", "/models"]
    command: Any = get_command(app)
    parsed = command.commands["download"].make_context("download", [*init["command"][4:], *init["args"]]).params
    assert parsed["folder"] == Path("/models")
    variables = environment(values)
    assert (variables["SANA_BASE_MODEL"], variables["SANA_SPRINT_MODEL"]) == ("/models/base", "/models/sprint")
    expected = parsed["safety"] if parsed["safety"] in {"opennsfw", "off"} else "/models/safety"
    assert load_settings(variables).safety_model == expected
    revisions = yaml.safe_load((CHART / "ci" / f"{values}.yaml").read_text()).get("models", {})
    for part in ("base", "sprint", "safety"):
        assert parsed[f"{part}_revision"] == revisions.get(f"{part}Revision", "main")
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container(values)["volumeMounts"]}
    assert mounts["/models"] is True


def test_pods_share_the_weights_unless_each_wants_its_own():
    def models(values: str) -> Object:
        volumes: list[Object] = [one for one in pod(values)["volumes"] if one["name"] == "models"]
        assert len(volumes) == 1
        return volumes[0]

    claim = render("scaled")["PersistentVolumeClaim"]
    assert models("scaled")["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    assert claim["spec"] == {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "40Gi"}}}
    assert render("ingress")["PersistentVolumeClaim"]["spec"]["storageClassName"] == "shared"
    assert models("http-route")["persistentVolumeClaim"] == {"claimName": "weights"}
    assert "PersistentVolumeClaim" not in render("http-route")
    assert models("weights-per-pod")["emptyDir"] == {"sizeLimit": "30Gi"}
    assert "initContainers" not in pod("bundled-cpu")


@pytest.mark.parametrize("values", ["scaled", "ingress"])
def test_replicas_share_images_and_jobs(values: str):
    settings = load_settings(environment(values))
    assert settings.storage_url.startswith("s3://")
    assert str(settings.jobs_url).startswith(("redis://", "valkey://"))


def test_the_scaler_counts_the_replicas_that_the_wait_needs(tmp_path: Path):
    scaled = render("scaled")["ScaledObject"]["spec"]
    [trigger] = scaled["triggers"]
    assert trigger["metricType"] == "AverageValue"
    query = trigger["metadata"]["query"]
    assert metric_names(query) == {"sana_predicted_wait_seconds"} <= {one.name for one in catalogue()}
    assert trigger["metadata"]["ignoreNullValues"] == "false", "an empty answer would be a wait of nothing"
    where = f'namespace="art", service="{render("scaled")["Service"]["metadata"]["name"]}"'
    series = {
        f'sana_predicted_wait_seconds{{{where}, pod="a", model="base"}}': 40,
        f'sana_predicted_wait_seconds{{{where}, pod="a", model="sprint"}}': 5,
        f'sana_predicted_wait_seconds{{{where}, pod="b", model="base"}}': 70,
        'sana_predicted_wait_seconds{namespace="other", service="drawing-sana", pod="c", model="base"}': 1000,
    }
    # 110 seconds of work at 20 seconds a replica are six replicas.
    expected = [{"labels": "{}", "value": 110}]
    test = {
        "rule_files": [],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": f"{value}x3"} for name, value in series.items()],
                "promql_expr_test": [{"expr": query, "eval_time": "2m", "exp_samples": expected}],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    tested = run([tool("promtool"), "test", "rules", "test.yaml"], cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert -(-expected[0]["value"] // float(trigger["metadata"]["threshold"])) == 6  # type: ignore[operator]
    assert scaled["minReplicaCount"] >= 1
    assert "replicas" not in render("scaled")["Deployment"]["spec"], "an upgrade would undo what the scaler did"


def test_the_scaler_may_have_credentials():
    [trigger] = render("scaled", "--set=autoscaling.authenticationRef=mine")["ScaledObject"]["spec"]["triggers"]
    assert trigger["authenticationRef"] == {"name": "mine"}


def test_one_replica_becomes_several_by_the_documented_commands():
    """The second command meets the first one's claim, which cannot be changed, and every secret is made before."""
    assert secret_names(list(render("scaled").values())) == {"sana-keys", "sana-metrics", "sana-redis"}
    assert render("one-gpu")["PersistentVolumeClaim"] == render("scaled")["PersistentVolumeClaim"]
    documented = (REPOSITORY / "docs" / "deployment.md").read_text()
    for values in ("one-gpu", "scaled"):
        assert f"ci/{values}.yaml" in documented
        for name in secret_names(list(render(values).values())):
            assert f"create secret generic {name} " in documented
    assert "authenticationRef" not in render("scaled")["ScaledObject"]["spec"]["triggers"][0]


def secret_names(node: Any) -> set[str]:
    """Names of all secrets that objects read."""
    if isinstance(node, list):
        return {name for one in node for name in secret_names(one)}
    if not isinstance(node, dict):
        return set()
    found = {name for one in node.values() for name in secret_names(one)}
    for key, value in node.items():
        if key in {"secretRef", "secretKeyRef", "credentials"}:
            found.add(value["name"])
        elif key == "secretName":
            found.add(value)
    return found


def test_the_alerts_and_the_dashboard_are_the_projects(tmp_path: Path):
    rule = render("scaled")["PrometheusRule"]
    assert rule["spec"] == yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    assert run([tool("promtool"), "check", "rules", tmp_path / "rules.yaml"]).returncode == 0
    shown = json.loads(render("scaled")["Dashboard"]["data"]["sana.json"])
    assert shown == json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())


def test_prometheus_has_a_key_where_there_are_keys():
    [endpoint] = render("scaled")["ServiceMonitor"]["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    assert endpoint["authorization"]["credentials"] == {"name": "sana-metrics", "key": "key"}
    assert environment("scaled")["SANA_API_KEYS_FILE"] == "/etc/sana/keys"
    [mount] = [one for one in container("scaled")["volumeMounts"] if one["name"] == "keys"]
    assert mount["mountPath"] == "/etc/sana"


def test_the_download_may_have_a_mirror_and_a_proxy():
    [init] = pod("weights-per-pod")["initContainers"]
    variables = {one["name"]: one.get("value") for one in init["env"]}
    assert variables["HF_ENDPOINT"] == "https://hub.example.com"
    assert variables["HTTPS_PROXY"] == "http://proxy.example.com:3128"
    assert "HF_ENDPOINT" not in environment("weights-per-pod")


def test_traces_go_where_the_operator_says():
    assert tracing.is_on(environment("scaled"))
    assert environment("scaled")["OTEL_SERVICE_NAME"] == render("scaled")["Deployment"]["metadata"]["name"]
    assert not tracing.is_on(environment("one-gpu"))


def test_the_network_policy_lets_nobody_at_the_clouds_metadata():
    policy = render("scaled")["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    public = next(rule for rule in policy["egress"] if rule["ports"] == [{"port": 443, "protocol": "TCP"}])
    assert "169.254.0.0/16" in public["to"][0]["ipBlock"]["except"]
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 5353, 443, 4318, 6379}


def test_the_network_policy_lets_any_name_service_be_asked():
    """A node's own cache has no pod that a selector would find."""
    [names] = [rule for rule in render("scaled")["NetworkPolicy"]["spec"]["egress"] if "to" not in rule]
    asked = {(port["port"], port["protocol"]) for port in names["ports"]}
    assert asked == {(53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP")}


def test_a_class_of_the_runtime_is_the_operators():
    assert pod("http-route")["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in pod("one-gpu")


def test_selectors_agree():
    objects = render("scaled")
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    monitored = objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= objects["Service"]["metadata"]["labels"].items()


def test_changed_settings_roll_the_pods():
    def checksum(*more: str) -> str:
        annotations = render("http-route", *more)["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["checksum/settings"])

    assert checksum() != checksum("--set-string=settings.SANA_MAX_QUEUE=129")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--set=replicaCount=2"], "storage.url: several replicas need s3://"),
        (
            ["--set=replicaCount=2,storage.url=s3://images"],
            "jobs.url or jobs.existingSecret: several replicas need one",
        ),
        (["--set=autoscaling.enabled=true"], "storage.url: several replicas need s3://"),
        (
            ["--set=storage.url=s3://images,jobs.url=redis://r/0,autoscaling.enabled=true,autoscaling.minReplicas=5"],
            "autoscaling.minReplicas: more than autoscaling.maxReplicas",
        ),
        (["--set=jobs.url=redis://r/0,jobs.existingSecret=x"], "jobs.url and jobs.existingSecret: give one of them"),
        (["--set=serviceMonitor.enabled=true,apiKeys.existingSecret=k"], "serviceMonitor.keySecret: /metrics wants"),
        (["--set=models.kind=bundled,models.safety=maker/safety"], "models.safety: a repository is downloaded with"),
        (["--set=replicaCount=0"], "at '/replicaCount': minimum: got 0, want 1"),
        (["--set=replicacount=2"], "additional properties 'replicacount' not allowed"),
        (["--set=models.kind=huge"], "at '/models/kind': value must be one of"),
        (["--set=preStopSeconds=0"], "at '/preStopSeconds': minimum: got 0, want 1"),
        (["--set=requestTimeoutSeconds=0"], "at '/requestTimeoutSeconds': exclusiveMinimum: got 0, want 0"),
        (
            ["--set-string=settings.SANA_MAX_QUEU=1"],
            "at '/settings': additional properties 'SANA_MAX_QUEU' not allowed",
        ),
        (["--set-string=settings.SANA_STORAGE_URL=s3://x"], "additional properties 'SANA_STORAGE_URL' not allowed"),
        (["--set=settings.SANA_MAX_QUEUE=1"], "at '/settings/SANA_MAX_QUEUE': got number, want string"),
        (["--set=storage.url=https://x"], "at '/storage/url': 'https://x' does not match pattern"),
        (["--set=jobs.url=redis://:password@r/0"], "at '/jobs/url'"),
        (["--set=ingress.enabled=true"], "at '/ingress/host': minLength"),
        (["--set=httpRoute.enabled=true"], "at '/httpRoute/parentRefs': minItems"),
    ],
    ids=lambda value: None if isinstance(value, list) else value.split(":")[0],
)
def test_what_would_not_work_is_refused(change: list[str], said: str):
    refused = helm("template", "drawing", str(CHART), *change)
    assert refused.returncode != 0
    assert said in refused.stderr


def test_the_settings_are_the_services_but_for_the_charts_own():
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]
    all_of_them = {f"SANA_{name.upper()}" for name in Settings.model_fields}
    own = {
        "SANA_MODELS", "SANA_BASE_MODEL", "SANA_SPRINT_MODEL", "SANA_BASE_REVISION", "SANA_SPRINT_REVISION",
        "SANA_SAFETY_MODEL", "SANA_DEVICES", "SANA_REQUEST_TIMEOUT_SECONDS", "SANA_STORAGE_URL", "SANA_JOBS_URL",
        "SANA_API_KEYS_FILE", "SANA_PUBLIC_URL", "SANA_LOG_FORMAT",
    }  # fmt: skip
    assert set(schema["properties"]) == all_of_them - own


def test_the_schema_knows_every_value():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def paths(one: Object, prefix: str = "") -> set[str]:
        nested = {name: value for name, value in one.items() if isinstance(value, dict)}
        inner = {
            path for name, value in nested.items() for path in paths(value.get("properties", {}), f"{prefix}{name}.")
        }
        return {f"{prefix}{name}" for name in one} | inner

    known = paths(schema["properties"])
    for path, _ in readme.leaves(values, set()):
        assert path in known or path.rpartition(".")[0] in known or path.startswith(("resources", "updateStrategy"))


def test_the_readme_is_current():
    assert readme.PATH.read_text(encoding="utf-8") == readme.render(), "run python -m deploy.helm.readme"


def test_the_chart_installs_this_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == sana_service.__version__


def test_a_packed_chart_is_whole(tmp_path: Path):
    packed = helm("package", str(CHART), f"--destination={tmp_path}")
    assert packed.returncode == 0, packed.stderr
    [archive] = tmp_path.glob("*.tgz")
    rendered = helm("template", "drawing", str(archive), f"--values={CHART}/ci/scaled.yaml")
    assert rendered.stdout.count("SanaStuck") == 1
