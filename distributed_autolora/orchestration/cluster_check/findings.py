"""The rules of the cluster check: from what was seen on the nodes to one finding a check. No Ray and no files here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from distributed_autolora.errors import counted

GIB = 1 << 30
MEMORY_SHARE = 0.8
"""Above this share of the free memory, what the estimate leaves out may be too much."""
_SLOW_MS = 1000.0


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Literal["PASS", "WARN", "FAIL"]
    check: str
    figure: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level}  {self.check}: {self.figure}{f' -> {self.advice}' if self.advice else ''}"


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What was seen on one node; memory and disks in bytes free."""

    node: str
    """Its address and the start of its id."""
    versions: dict[str, str]
    output_problem: str
    """Why the output folder is not the driver's, or cannot be written; empty: it is, and it can."""
    output_free: int
    cache_free: int
    cache_problem: str
    memory_free: int
    torch_gpus: int
    inputs: dict[str, tuple[bool, str]]
    """By "data" and "weights": whether they can be read there, and their size or what is wrong."""


@dataclass(frozen=True)
class Place:
    """Where a worker was placed, and the bytes free on its GPU; None: it has none."""

    node_id: str
    gpu_free: int | None


def check_versions(nodes: Sequence[NodeFacts]) -> Finding:
    """Python, Ray, torch and this package must be the same on all nodes."""
    differing = []
    for library in nodes[0].versions:
        by_version: dict[str, list[str]] = {}
        for facts in nodes:
            by_version.setdefault(facts.versions[library], []).append(facts.node)
        if len(by_version) > 1:
            differing += [f"{library} {version} on {', '.join(on)}" for version, on in by_version.items()]
    if differing:
        advice = "install the same on all nodes: one image, or `pip install -c constraints.txt -e .` on each."
        return Finding("FAIL", "versions", "; ".join(differing), advice)
    same = ", ".join(f"{library} {version}" for library, version in nodes[0].versions.items())
    return Finding("PASS", "versions", f"{same} on {counted(len(nodes), 'node')}")


def check_output(folder: str, nodes: Sequence[NodeFacts]) -> Finding:
    """All nodes must write to one folder."""
    problems = [f"{facts.node}: {facts.output_problem}" for facts in nodes if facts.output_problem]
    if problems:
        advice = "mount the same shared folder, writable, at this path on all nodes, or choose another --output."
        return Finding("FAIL", "output folder", f"{folder} is not shared. {'; '.join(problems)}", advice)
    where = "one folder, written and read" if len(nodes) > 1 else "written and read"
    return Finding("PASS", "output folder", f"{folder} is {where} on {counted(len(nodes), 'node')}")


def check_inputs(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Data and weights must be readable and the same on all nodes."""
    findings = []
    for name, (_, first) in nodes[0].inputs.items():
        seen = {facts.node: facts.inputs[name] for facts in nodes}
        if set(seen.values()) == {(True, first)}:
            findings.append(Finding("PASS", name, f"{first}, the same on {counted(len(nodes), 'node')}"))
        else:
            figure = "; ".join(f"{node}: {text}" for node, (_, text) in seen.items())
            advice = f"put the {name} where every node reads the same: shared storage at one path, or a URI."
            findings.append(Finding("FAIL", name, figure, advice))
    return findings


def check_disks(nodes: Sequence[NodeFacts], output_needed: int, cache_needed: int) -> Finding:
    """The output folder takes checkpoints and the model, the cache of every node the encoded images."""
    short = [f"{facts.node}: {facts.cache_problem}" for facts in nodes if facts.cache_problem]
    tight: list[str] = []
    for facts in nodes:
        disks = {"output folder": (facts.output_free, output_needed), "image cache": (facts.cache_free, cache_needed)}
        for what, (free, needed) in disks.items():
            if free < 2 * needed:
                text = f"{facts.node}: {_size(free)} free for the {what}, about {_size(needed)} needed"
                (short if free < needed else tight).append(text)
    if short or tight:
        advice = "free some space, or choose another --output or --scaling.cache."
        return Finding("FAIL" if short else "WARN", "disk", "; ".join([*short, *tight]), advice)
    output, cache = min(facts.output_free for facts in nodes), min(facts.cache_free for facts in nodes)
    figure = f"{_size(output)} free for the output folder (about {_size(output_needed)} a run), "
    figure += f"{_size(cache)} for a node's image cache (about {_size(cache_needed)})"
    return Finding("PASS", "disk", figure)


def check_gpus(nodes: Sequence[NodeFacts], ray_gpus: Mapping[str, int], wanted: int) -> Finding:
    """Torch must see the GPUs that Ray hands out; a run on CPUs wants 0."""
    lacking = [
        f"{facts.node}: Ray hands out {ray_gpus[facts.node]}, torch sees {facts.torch_gpus}"
        for facts in nodes
        if facts.torch_gpus < ray_gpus[facts.node]
    ]
    if lacking:
        advice = "check the driver with `nvidia-smi` there: torch with CUDA 13 needs version 580 or newer, and a "
        advice += "container needs the NVIDIA runtime."
        return Finding("FAIL" if wanted else "WARN", "GPUs", "; ".join(lacking), advice)
    in_ray, in_torch = sum(ray_gpus.values()), sum(facts.torch_gpus for facts in nodes)
    seen = f"Ray hands out {in_ray}, torch sees {in_torch}"
    if wanted > in_ray:
        return Finding("FAIL", "GPUs", f"{seen}, {wanted} are needed", "lower --gpus, or add GPU nodes.")
    idle = in_torch - sum(ray_gpus[facts.node] for facts in nodes)
    if idle and wanted:
        return Finding("WARN", "GPUs", seen, f"{idle} of them will idle: start the nodes with --num-gpus.")
    if in_ray and not wanted:
        return Finding("WARN", "GPUs", seen, "the run computes on CPUs: give --gpus N.")
    return Finding("PASS", "GPUs", f"{seen}; the run uses {wanted or 'none'}")


def check_memory(places: Sequence[Place], nodes: Mapping[str, NodeFacts], device: int, process: int) -> Finding:
    """The workers of a node must fit into its memory, or each into its GPU's.

    A worker takes `device` bytes of tensors and `process` bytes of host memory besides them; nodes are given by id.
    """
    rows = []
    for node_id in {place.node_id for place in places}:
        node, free = nodes[node_id].node, nodes[node_id].memory_free
        gpus = [place.gpu_free for place in places if place.node_id == node_id]
        on_host = len(gpus) * process + gpus.count(None) * device
        rows.append((on_host / max(1, free), node, on_host, free, len(gpus)))
        rows += [(device / max(1, gpu), f"a GPU of {node}", device, gpu, 1) for gpu in gpus if gpu is not None]
    share, where, needed, free, workers = max(rows)
    figure = (
        f"fullest is {where}: about {_size(needed)} for {counted(workers, 'worker')}, {_size(free)} free (the estimate "
        "leaves out workspaces, fragmentation and the page cache)"
    )
    if share <= MEMORY_SHARE:
        return Finding("PASS", "memory", figure)
    advice = (
        "more workers make each one's share of a batch smaller; or lower --batch-size (which "
        "changes the result) or --evaluation.batch-size-per-worker (which does not); or take larger nodes."
    )
    return Finding("FAIL" if share > 1 else "WARN", "memory", figure, advice)


def check_all_reduce(who: str, size: int, milliseconds: float, problem: str) -> Finding:
    """The workers must reach each other, and their sums of `size` bytes must be right (`problem` is empty)."""
    if problem:
        advice = (
            "open all TCP ports between the nodes; where a host name resolves to 127.0.x.x, or there are several "
            "networks, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the right interface on every node."
        )
        return Finding("FAIL", "all-reduce", f"{who}: {problem}", advice)
    figure = f"{who}: {_size(size)} of gradients summed in {milliseconds:.1f} ms, sums right"
    if milliseconds > _SLOW_MS:
        advice = "every step waits that long: put the nodes into one zone, with a faster network."
        return Finding("WARN", "all-reduce", figure, advice)
    return Finding("PASS", "all-reduce", figure)


def check_tracking(uri: str, problem: str, nodes: int) -> Finding:
    """The tracking store must answer (`problem` is empty), and serve so many nodes."""
    if problem:
        return Finding("FAIL", "tracking", problem.rstrip("."), "start it, or change --mlflow-uri.")
    if uri.startswith("sqlite:") and nodes > 1:
        advice = "SQLite is for one machine, not for shared storage: give --mlflow-uri http://HOST:5000."
        return Finding("WARN", "tracking", f"{uri} answers, on a cluster of {nodes} nodes", advice)
    return Finding("PASS", "tracking", f"{uri} answers")


def check_access(auth_mode: str, services: Mapping[str, tuple[str, bool]]) -> Finding:
    """Who can reach the cluster: {"dashboard": (address, whether other machines can connect)}. It never fails."""
    texts = [
        f"{name} at {address} ({'other machines can connect' if is_open else 'this machine only'})"
        for name, (address, is_open) in services.items()
    ]
    figure = f"RAY_AUTH_MODE is {auth_mode}; {'; '.join(texts)}"
    if auth_mode == "disabled" and any(is_open for _, is_open in services.values()):
        advice = (
            "whoever reaches these ports can run programs: let a firewall or security group admit the cluster's own "
            "machines only, or set RAY_AUTH_MODE=token everywhere."
        )
        return Finding("WARN", "access", figure, advice)
    return Finding("PASS", "access", figure)


def _size(number: int) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / (1 << 20):.0f} MiB"
