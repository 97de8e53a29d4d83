"""docs/kuberay asks Kubernetes for what the run that it starts asks Ray for; checked without a cluster."""

import re
import shlex
import tomllib
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from distributed_autolora.cli import TrainingFlags, parse_one_of, parse_training_flags
from distributed_autolora.config import output_home
from distributed_autolora.data.preparation.flags import SOURCES, Check
from distributed_autolora.errors import UserError

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "kuberay"
REPOSITORY = FOLDER.parents[1]
# The fields of ray.io/v1 (KubeRay 1.5) that the manifest may use, by the part that they stand in.
FIELDS = {
    "job": "entrypoint backoffLimit activeDeadlineSeconds shutdownAfterJobFinishes ttlSecondsAfterFinished "
    "rayClusterSpec",
    "cluster": "rayVersion authOptions enableInTreeAutoscaling autoscalerOptions headGroupSpec workerGroupSpecs",
    "head": "rayStartParams template",
    "workers": "groupName replicas minReplicas maxReplicas rayStartParams template",
}
UNITS = {"m": 1e-3, "Mi": 2**20, "Gi": 2**30}
DOCUMENTS: dict[str, dict[str, Any]] = {
    document["kind"]: document
    for name in ("volume.yaml", "rayjob.yaml")
    for document in yaml.safe_load_all((FOLDER / name).read_text())
}
CLAIM, JOB = DOCUMENTS["PersistentVolumeClaim"], DOCUMENTS["RayJob"]["spec"]
CLUSTER: dict[str, Any] = JOB["rayClusterSpec"]


@pytest.fixture(scope="module")
def flags() -> TrainingFlags:
    return parse_training_flags("", "demo", shlex.split(JOB["entrypoint"])[2:])


def pods() -> list[dict[str, Any]]:
    groups = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def quantity(text: str | int) -> float:
    match = re.fullmatch(r"([\d.]+)(\w*)", str(text))
    assert match is not None
    return float(match[1]) * UNITS.get(match[2], 1)


def ray_pin() -> str:
    pin = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pin is not None
    return pin[1]


def test_it_is_a_ray_job_of_fields_that_kuberay_knows() -> None:
    assert DOCUMENTS["RayJob"]["apiVersion"] == "ray.io/v1"
    assert JOB.keys() <= set(FIELDS["job"].split())
    assert CLUSTER.keys() <= set(FIELDS["cluster"].split())
    assert CLUSTER["headGroupSpec"].keys() <= set(FIELDS["head"].split())
    assert all(group.keys() <= set(FIELDS["workers"].split()) for group in CLUSTER["workerGroupSpecs"])


def test_every_pod_runs_the_pinned_ray() -> None:
    assert CLUSTER["rayVersion"] == ray_pin()
    images = {container["image"] for pod in pods() for container in pod["containers"]}
    assert len(images) == 1
    assert images.pop().endswith(f":{ray_pin()}")
    recipe = (FOLDER / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{ray_pin()}-py311\n" in recipe
    assert "-c constraints.txt" in recipe


def test_the_image_gets_what_its_installation_reads() -> None:
    lines = re.sub(r"(?m)^#.*\n", "", (FOLDER / "Dockerfile").read_text()).replace("\\\n", " ").splitlines()
    steps = [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines if line.strip()]
    assert [name for name, _ in steps] == ["FROM", "ENV", "COPY", "WORKDIR", "RUN"]
    copied, home, command = steps[2][1].split(), steps[3][1], shlex.split(steps[4][1])
    assert copied[1:] == [".", home]
    assert command[:2] == ["pip", "install"]
    assert (command[command.index("-c") + 1], command[-2:]) == ("constraints.txt", ["-e", "."])
    left_out = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for name in ("pyproject.toml", "constraints.txt", project["readme"], *project["license-files"], "jobs/finetune.py"):
        assert (REPOSITORY / name).is_file()
        assert not any(fnmatch(part, pattern) for part in Path(name).parts for pattern in left_out)


def test_the_entrypoint_is_a_program_of_this_repository_with_flags_that_it_takes(flags: TrainingFlags) -> None:
    python, program, *_ = shlex.split(JOB["entrypoint"])
    home = re.search(r"^WORKDIR (\S+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert home is not None
    assert python == "python"
    assert (REPOSITORY / Path(program).relative_to(home[1])).is_file()
    flags.experiment.validate()
    assert flags.experiment.scaling.use_gpu
    with pytest.raises(UserError, match=r"--run\.output"):
        parse_training_flags("", "demo", [*shlex.split(JOB["entrypoint"])[2:], "--run.outptu", "x"])


def test_all_that_outlives_a_pod_is_on_the_volume_that_all_pods_mount(flags: TrainingFlags) -> None:
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods():
        names = {
            volume["name"]
            for volume in pod["volumes"]
            if volume.get("persistentVolumeClaim", {}).get("claimName") == CLAIM["metadata"]["name"]
        }
        (container,) = pod["containers"]
        (folder,) = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in names}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        config = flags.experiment
        homes = {variable["value"] for variable in container["env"] if variable["name"] == "DISTRIBUTED_AUTOLORA_HOME"}
        assert homes == {str(output_home(config.run))}
        for path in (str(output_home(config.run)), config.data.path, config.model.weights):
            assert Path(str(path)).is_relative_to(folder)


def test_the_workers_have_what_the_run_asks_for_and_no_pod_more_than_its_limit(flags: TrainingFlags) -> None:
    scaling = flags.experiment.scaling
    (group,) = CLUSTER["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert quantity(limits["nvidia.com/gpu"]) == 1
    assert quantity(limits["cpu"]) == scaling.cpus_per_worker
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (0, 0, scaling.num_workers)
    for pod in pods():
        resources = pod["containers"][0]["resources"]
        # Equal, so that a pod is never ended for what it was promised.
        assert resources["requests"] == resources["limits"]
    (head,) = CLUSTER["headGroupSpec"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]


def test_shared_memory_has_room_for_ray_s_object_store() -> None:
    pod = CLUSTER["workerGroupSpecs"][0]["template"]["spec"]
    (size,) = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume]
    memory = quantity(pod["containers"][0]["resources"]["limits"]["memory"])
    assert 0.3 * memory < quantity(size) < memory / 2  # Ray's default share; the rest is the worker's


def test_a_stranger_needs_a_token_and_nothing_runs_for_ever() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["enableInTreeAutoscaling"] is True
    assert JOB["shutdownAfterJobFinishes"] is True
    assert 0 < JOB["ttlSecondsAfterFinished"] < 3600
    assert 0 < CLUSTER["autoscalerOptions"]["idleTimeoutSeconds"] <= 600
    assert JOB["activeDeadlineSeconds"] > 0


def test_the_files_get_to_where_the_run_looks_for_them(flags: TrainingFlags) -> None:
    pod = DOCUMENTS["Pod"]
    (container,) = pod["spec"]["containers"]
    head = CLUSTER["headGroupSpec"]["template"]["spec"]
    for key in ("image", "workingDir", "volumeMounts"):
        assert container[key] == head["containers"][0][key]
    for key in ("volumes", "securityContext"):
        assert pod["spec"][key] == head[key]
    said = (FOLDER / "volume.yaml").read_text()
    assert f"{pod['metadata']['name']}:{flags.experiment.model.weights}\n" in said
    assert f"--output {flags.experiment.data.path}\n" in said


def test_the_run_trains_what_the_volume_is_filled_with_and_a_paper_s_task_needs_two_other_words(
    flags: TrainingFlags,
) -> None:
    comment = (FOLDER / "rayjob.yaml").read_text()
    said = re.search(r'put "(.+)", say, for "(.+)", and in volume.yaml "(.+)" for "(.+)"', comment)
    assert said is not None
    recipe, own_recipe, source, own_source = said.groups()
    assert JOB["entrypoint"].count(own_recipe) == 1
    prepare = re.search(r"jobs/prepare_data\.py (\w+) (.*)", (FOLDER / "volume.yaml").read_text())
    assert prepare is not None
    assert prepare[1] == own_source
    for words, name in ((own_source, own_recipe), (source, recipe)):
        flags_of_source = parse_one_of(SOURCES, "", [words, *shlex.split(prepare[2])])
        assert not isinstance(flags_of_source, Check)
        assert f"--recipe {flags_of_source.recipe}" == name
    paper = parse_training_flags("", "demo", shlex.split(JOB["entrypoint"].replace(own_recipe, recipe))[2:]).experiment
    paper.validate()
    assert paper.data.task == source
    assert paper.scaling == flags.experiment.scaling


def test_the_job_tracks_in_the_server_of_the_third_manifest(flags: TrainingFlags) -> None:
    objects = {document["kind"]: document for document in yaml.safe_load_all((FOLDER / "mlflow.yaml").read_text())}
    service, pod = objects["Service"], objects["Deployment"]["spec"]["template"]
    name, (port,) = service["metadata"]["name"], service["spec"]["ports"]
    assert flags.experiment.run.mlflow_uri == f"http://{name}:{port['port']}"
    (server,) = pod["spec"]["containers"]
    assert port["targetPort"] in {each["name"] for each in server["ports"]}
    assert server["image"] == pods()[0]["containers"][0]["image"]
    assert objects["PersistentVolumeClaim"]["metadata"]["name"] == name
    policy = objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    for selector in (service["spec"]["selector"], policy, objects["Deployment"]["spec"]["selector"]["matchLabels"]):
        assert selector == pod["metadata"]["labels"]

    from mlflow.cli import server as command

    assert server["command"] == ["python", "-m", "mlflow", "server"]
    read = command.make_context("server", list(server["args"])).params
    (mounted,) = server["volumeMounts"]
    assert read["backend_store_uri"] == f"sqlite:///{mounted['mountPath']}/mlflow.db"
    assert read["artifacts_destination"].startswith(f"{mounted['mountPath']}/")
    assert f"{name}:{port['port']}" in read["allowed_hosts"].split(",")
    assert read["port"] == server["ports"][0]["containerPort"]


def differences(one: Any, other: Any, at: str = "") -> dict[str, Any]:
    """Returns the values of `other` that differ from those of `one`, or are in one of them only, by their path."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(f"{at}.{key}", one.get(key), other.get(key)) for key in {*one, *other}]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(f"{at}[{n}]", *pair) for n, pair in enumerate(zip(one, other, strict=True))]
    else:
        return {} if one == other else {at: other}
    return {path: value for pair in pairs for path, value in differences(pair[1], pair[2], pair[0]).items()}


def test_the_spot_manifest_is_the_other_one_with_as_many_workers_as_there_are_spot_nodes(flags: TrainingFlags) -> None:
    (spot,) = yaml.safe_load_all((FOLDER / "rayjob-spot.yaml").read_text())
    changed = differences(DOCUMENTS["RayJob"], spot)
    group = ".spec.rayClusterSpec.workerGroupSpecs[0]"
    pod = f"{group}.template.spec"
    named = {".metadata.name", ".spec.entrypoint", f"{group}.groupName"}
    assert changed.keys() == named | {f"{group}.maxReplicas", f"{pod}.affinity", f"{pod}.tolerations"}
    own = parse_training_flags("", "demo", shlex.split(spot["spec"]["entrypoint"])[2:]).experiment
    own.validate()
    scaling = replace(own.scaling, num_workers=flags.experiment.scaling.num_workers, max_workers=None, max_failures=3)
    assert replace(own, scaling=scaling, optimization=flags.experiment.optimization) == flags.experiment
    least, most = own.scaling.num_workers, own.scaling.max_workers
    assert most is not None
    assert (least, most) == (1, changed[f"{group}.maxReplicas"])
    assert own.optimization.batch_norm_shards == most
    closed = {each["key"] for each in changed[f"{pod}.tolerations"]}
    assert {each["key"] for each in pods()[1]["tolerations"]} < closed
