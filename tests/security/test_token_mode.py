"""Token mode: a head takes jobs and programs with the token, and refuses all others in words."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from distributed_autolora.orchestration.cluster.processes import end_family
from tests.orchestration.cluster.test_local_cluster import listening
from tests.orchestration.mlflow_tracking.tracking_server import free_port
from tests.programs import environment, wait_for
from tests.security.watching import descendants


@dataclass
class TokenHead:
    """A head in token mode."""

    environment: dict[str, str]
    token: str
    address: str
    dashboard: str


def ray(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray.scripts.scripts", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenHead]:
    home = tmp_path_factory.mktemp("home")
    gcs, dashboard, client, agent = (free_port() for _ in range(4))
    own = environment(home, HOME=str(home), RAY_AUTH_MODE="token", RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0")
    assert ray(own, "get-auth-token", "--generate").returncode == 0
    with tempfile.TemporaryDirectory(prefix="tok-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=1"]
        command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--temp-dir={folder}", "--min-worker-port=0", "--max-worker-port=0"]
        with (home / "head.log").open("wb") as log:
            started = subprocess.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(lambda: dashboard in {port for _, port in listening(descendants(started.pid))}, "the job server")
            token = (home / ".ray" / "auth_token").read_text().strip()
            yield TokenHead(own, token, f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}")
        finally:
            end_family(started)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_token_mode_takes_jobs_with_the_token_and_refuses_all_others(head: TokenHead) -> None:
    def submit(**changes: str) -> subprocess.CompletedProcess[str]:
        words = ["job", "submit", "--address", head.dashboard, "--", "python", "-c", "print(6 * 7)"]
        return ray(head.environment | changes, *words)

    taken = submit()
    assert taken.returncode == 0, taken.stderr
    assert "42" in taken.stdout
    for changes, says in (
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "Invalid authentication token"),
        ({"HOME": "/nowhere"}, "couldn't find an authentication token"),
    ):
        refused = submit(**changes)
        assert refused.returncode != 0
        assert says in refused.stdout + refused.stderr


CONNECT = """
from distributed_autolora.cli import run_program
from distributed_autolora.config import ScalingConfig
from distributed_autolora.orchestration.cluster.connection import connect
run_program(lambda: connect(ScalingConfig(num_workers=1)))
"""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_program_needs_the_token_and_says_so_in_one_line(head: TokenHead) -> None:
    for changes, status, says in (
        ({}, 0, ""),
        ({"RAY_AUTH_TOKEN": "0" * 64}, 2, "the token"),
        ({"HOME": "/nowhere"}, 2, "needs a token, and none was found"),
    ):
        own = head.environment | {"RAY_ADDRESS": head.address} | changes
        done = subprocess.run(
            [sys.executable, "-c", CONNECT], env=own, capture_output=True, text=True, check=False, timeout=200
        )
        assert done.returncode == status, done.stderr
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        assert head.token not in done.stdout + done.stderr
