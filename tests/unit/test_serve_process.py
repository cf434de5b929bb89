"""What a server asks of its machine: free memory, a supervisor, a socket."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from qvl.errors import InputError
from qvl.serve.errors import BindError
from qvl.serve.memory import free_memory, kv_budget, mapped_weights
from qvl.serve.server import bind, url_of
from qvl.serve.supervision import Supervisor

GIB = 2**30


def machine(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


class TestFreeMemory:
    FREE = "MemTotal: 1 kB\nMemAvailable:    8388608 kB\n"  # 8 GiB

    def test_of_a_machine(self, tmp_path):
        assert free_memory(machine(tmp_path, {"proc/meminfo": self.FREE})) == 8 * GIB

    @pytest.mark.parametrize(
        ("limit", "used", "inactive", "free"),
        [(3 * GIB, GIB, 0, 2 * GIB), (3 * GIB, GIB, GIB // 2, 5 * GIB // 2), (GIB, 2 * GIB, 0, 0)],
    )
    def test_a_container_leaves_less(self, tmp_path, limit, used, inactive, free):
        group = "sys/fs/cgroup/system.slice/qvl.service"
        files = {
            "proc/meminfo": self.FREE,
            "proc/self/cgroup": "0::/system.slice/qvl.service\n",
            f"{group}/memory.max": f"{limit}\n",
            f"{group}/memory.current": f"{used}\n",
            f"{group}/memory.stat": f"anon 1\ninactive_file {inactive}\n",
        }
        assert free_memory(machine(tmp_path, files)) == free

    def test_the_tightest_group_on_the_way_up_counts(self, tmp_path):
        files = {
            "proc/meminfo": self.FREE,
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/inner/memory.max": "max\n",
            "sys/fs/cgroup/outer/inner/memory.current": "5\n",
            "sys/fs/cgroup/outer/memory.max": f"{GIB}\n",
            "sys/fs/cgroup/outer/memory.current": f"{GIB // 4}\n",
        }
        assert free_memory(machine(tmp_path, files)) == 3 * GIB // 4

    def test_the_first_version_of_cgroups(self, tmp_path):
        files = {
            "proc/meminfo": self.FREE,
            "proc/self/cgroup": "5:cpu:/x\n4:memory:/box\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
        }
        assert free_memory(machine(tmp_path, files)) == GIB

    def test_where_nothing_is_known_it_is_modest(self, tmp_path):
        assert free_memory(tmp_path) == 2 * GIB

    def test_mapped_weights_are_not_free(self, tmp_path):
        maps = tmp_path / "maps"
        maps.write_text(
            "7f0000000000-7f0040000000 r--s 00000000 08:01 5    /models/a b/model-1.safetensors\n"
            "7f0040000000-7f0080000000 r--s 00000000 08:01 6    /lib/libtorch.so\n"
            "7f0080000000-7f00c0000000 rw-p 00000000 00:00 0\n"
        )
        assert mapped_weights(maps) == GIB

    def test_half_of_this_machines_is_for_keys_and_values(self):
        import torch

        budget = kv_budget(torch.device("cpu"))
        assert 0 < budget <= free_memory() / 2 * 1.2


class TestSupervisor:
    @pytest.fixture
    def listening(self, tmp_path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
            inbox.bind(str(tmp_path / "notify"))
            inbox.settimeout(5)
            yield inbox, str(tmp_path / "notify")

    def test_is_told_of_the_start_and_the_end(self, listening):
        inbox, path = listening
        supervisor = Supervisor({"NOTIFY_SOCKET": path})
        supervisor.ready()
        supervisor.lives()  # nobody asked
        supervisor.stopping()
        assert [inbox.recv(100) for _ in range(2)] == [b"READY=1", b"STOPPING=1"]

    def test_a_name_without_a_file(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
            inbox.bind("\0qvl-test-notify")
            inbox.settimeout(5)
            Supervisor({"NOTIFY_SOCKET": "@qvl-test-notify"}).ready()
            assert inbox.recv(100) == b"READY=1"

    def test_signs_of_life_come_as_often_as_they_are_waited_for(self, listening, monkeypatch):
        inbox, path = listening
        now = [100.0]
        monkeypatch.setattr("qvl.serve.supervision.monotonic", lambda: now[0])
        supervisor = Supervisor({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "4000000"})
        for _ in range(50):  # five seconds of ten ticks
            supervisor.lives()
            now[0] += 0.1
        inbox.setblocking(False)
        received = 0
        while True:
            try:
                assert inbox.recv(100) == b"WATCHDOG=1"
            except BlockingIOError:
                break
            received += 1
        assert received == 3  # at 0, 2 and 4 seconds

    @pytest.mark.parametrize(
        "environment", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"NOTIFY_SOCKET": "x"}]
    )
    def test_nobody_listens(self, environment):
        supervisor = Supervisor({**environment, "WATCHDOG_USEC": "1"})
        supervisor.ready()
        supervisor.lives()
        supervisor.stopping()


class TestSocket:
    def test_an_address_as_people_type_it(self):
        with bind("localhost", 0) as listener:
            port = listener.getsockname()[1]
            assert url_of(listener) in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}")
            with pytest.raises(BindError, match=f"port {port} of 127.0.0.1 is in use"):
                bind(listener.getsockname()[0], port)

    def test_all_addresses_are_shown_as_one_that_works(self):
        with bind("0.0.0.0", 0) as listener:
            assert url_of(listener).startswith("http://127.0.0.1:")

    def test_an_address_of_another_machine(self):
        with pytest.raises(BindError, match="cannot be listened on"):
            bind("192.0.2.1", 0)

    def test_no_address(self):
        with pytest.raises(InputError, match="no address"):
            bind("no such name", 0)


def test_the_unit_and_the_image_start_what_there_is():
    """The options that `deploy/` names are those of the command."""
    from typer.main import get_command

    from qvl.cli.app import app

    serve = get_command(app).commands["serve"]
    known = {name for parameter in serve.params for name in parameter.opts}
    deploy = Path(__file__).parents[2] / "deploy"
    unit = (deploy / "qvl.service").read_text()
    image = (deploy / "Dockerfile").read_text()
    (start,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    (entry,) = [line for line in image.splitlines() if line.startswith("ENTRYPOINT")]
    for line in (start, entry):
        words = line.replace('"', " ").replace(",", " ").split()
        assert "serve" in words
        assert {word for word in words if word.startswith("--")} <= known
    for option in ("NoNewPrivileges=yes", "DynamicUser=yes", "ProtectSystem=strict", "MemoryMax="):
        assert option in unit
    assert "USER 10001" in image and "HEALTHCHECK" in image


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemd_reads_the_unit_without_a_complaint(tmp_path):
    unit = (Path(__file__).parents[2] / "deploy" / "qvl.service").read_text()
    file = tmp_path / "qvl.service"
    file.write_text(unit.replace("/opt/qvl/bin/qvl", "/bin/true"))  # which must exist
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "qvl.service" not in done.stdout + done.stderr
    file.write_text(unit.replace("/opt/qvl/bin/qvl", "/bin/true").replace("ProtectSystem=", "ProtctSystem="))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert "qvl.service" in done.stderr and "ProtctSystem" in done.stderr  # it does look
