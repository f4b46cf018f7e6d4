"""Checks of the machine: they pass on one that is well and name what is wrong with one that is not."""

import resource

import pytest
import torch

from ssl_ft.doctor import machine


def told(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Have the system tell these files and no others."""
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))


class TestVersions:
    def test_pass_here(self):
        finding = machine.check_versions()
        assert finding.verdict == "pass"
        assert f"torch {torch.__version__}" in finding.measured

    def test_what_is_too_old_or_absent_is_named(self):
        asked = ["torch>=2.11", "numpy>=2", "pillow>=999", "there_is_no_such_package", 'lightly>=999; extra == "dev"']
        assert machine.unmet_requirements(asked) == ["pillow>=999", "there_is_no_such_package"]

    def test_an_old_package_fails(self, monkeypatch):
        monkeypatch.setattr(machine, "requires", lambda name: ["timm>=999"])
        finding = machine.check_versions()
        assert finding.verdict == "fail"
        assert "timm>=999" in finding.measured

    def test_operators_that_do_nothing_fail(self, monkeypatch):
        monkeypatch.setattr("torchvision.ops.nms", lambda boxes, scores, threshold: torch.arange(len(boxes)))
        assert machine.check_versions().verdict == "fail"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
class TestDeviceWithoutGpu:
    def test_cannot_check_unless_asked_for(self, monkeypatch):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert machine.check_device("cpu").verdict == "cannot check"
        asked = machine.check_device("cuda")
        assert asked.verdict == "fail"
        assert "device=cpu" in asked.advice

    def test_hidden_gpus_are_no_fault(self, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        finding = machine.check_device("auto")
        assert finding.verdict == "cannot check"
        assert "CUDA_VISIBLE_DEVICES" in finding.measured


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_passes():
    finding = machine.check_device("auto")
    assert finding.verdict == "pass", finding
    assert "compute capability" in finding.measured


class TestCpu:
    def test_passes_here(self):
        finding = machine.check_cpu(num_ranks=1)
        assert finding.verdict == "pass"
        assert "cores usable" in finding.measured

    def test_wrong_products_fail(self, monkeypatch):
        monkeypatch.setattr(
            torch.Tensor, "__matmul__", lambda a, b: torch.mm(a, b) * (1.001 if a.dtype == torch.float32 else 1)
        )
        assert machine.check_cpu(num_ranks=1).verdict == "fail"

    def test_a_quota_counts_and_too_many_threads_are_told(self, monkeypatch):
        told(monkeypatch, {"/sys/fs/cgroup/cpu.max": "50000 100000\n"})
        monkeypatch.setattr(machine, "cpu_flags", lambda: {"avx2", "amx_bf16"})
        assert machine.usable_cores() == 0.5
        finding = machine.check_cpu(num_ranks=1)
        assert "set threads=1" in finding.advice
        assert "amx_bf16" in finding.measured

    def test_an_old_kind_of_quota_counts(self, monkeypatch):
        folder = "/sys/fs/cgroup/cpu/cpu.cfs_"
        told(monkeypatch, {f"{folder}quota_us": "25000\n", f"{folder}period_us": "100000\n"})
        assert machine.usable_cores() == 0.25
        told(monkeypatch, {f"{folder}quota_us": "-1\n", f"{folder}period_us": "100000\n"})
        assert machine.usable_cores() >= 1


class TestMemory:
    MEMINFO = "MemTotal: 9000000 kB\nMemAvailable:   2048000 kB\n"

    def test_what_is_there_is_held_against_what_is_needed(self, monkeypatch):
        told(monkeypatch, {"/proc/meminfo": self.MEMINFO})
        assert machine.check_memory(num_ranks=2, need_mb=1000).verdict == "pass"
        finding = machine.check_memory(num_ranks=2, need_mb=1001)
        assert finding.verdict == "fail"
        assert "2,000 MiB available, 2,002 needed" in finding.measured

    def test_a_containers_limit_counts_without_the_files_it_holds(self, monkeypatch):
        group = "/sys/fs/cgroup/memory"
        files = {f"{group}.max": f"{500 * 2**20}\n", f"{group}.current": f"{450 * 2**20}\n"}
        told(
            monkeypatch,
            {"/proc/meminfo": self.MEMINFO, **files, f"{group}.stat": f"anon 1\ninactive_file {250 * 2**20}\n"},
        )
        assert machine.available_mb() == 300
        told(monkeypatch, {"/proc/meminfo": self.MEMINFO, **files, f"{group}.max": "max\n"})
        assert machine.available_mb() == 2000

    def test_a_system_that_does_not_tell(self, monkeypatch):
        told(monkeypatch, {})
        assert machine.check_memory(num_ranks=1, need_mb=1).verdict == "cannot check"

    def test_this_system_tells(self):
        assert (machine.available_mb() or 0) > 1


class TestLimits:
    def test_few_open_files_or_small_ones_fail(self, monkeypatch):
        limits = {resource.RLIMIT_NOFILE: 64, resource.RLIMIT_FSIZE: 1000}
        monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], limits[which]))
        finding = machine.check_limits(num_ranks=2, num_gpus=0)
        assert finding.verdict == "fail"
        assert "ulimit -n" in finding.advice
        assert "ulimit -f" in finding.advice
        limits.update({resource.RLIMIT_NOFILE: resource.RLIM_INFINITY, resource.RLIMIT_FSIZE: resource.RLIM_INFINITY})
        assert machine.check_limits(num_ranks=2, num_gpus=0).verdict == "pass"

    def test_little_shared_memory_is_a_fault_where_gpus_need_it(self):
        assert machine.check_limits(num_ranks=10**9, num_gpus=2).verdict == "fail"
        finding = machine.check_limits(num_ranks=10**9, num_gpus=0)
        assert finding.verdict == "pass"
        assert "shm-size" in finding.advice
