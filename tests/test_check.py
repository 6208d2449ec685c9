"""python -m ember_mlx --check, with the host runner as a GPU, and with workers that crash, hang and return wrong numbers."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from ember_mlx.backend import gpu_kind
from ember_mlx.check.command import SANITIZER, Options, _sanitized
from ember_mlx.check.jobs import STAGES, Job, all_jobs, cells_of, chosen
from ember_mlx.check.report import lines_of
from ember_mlx.check.results import Log, read
from ember_mlx.scans.registry import RECURRENCES

from .check_device import BAD
from .metal_host import unsupported_reason

ROOT = Path(__file__).parents[1]
REASON = unsupported_reason()
on_host = pytest.mark.skipif(REASON is not None, reason=f"the host runner does not work here: {REASON}")


def command(*arguments, device="host"):
    return [sys.executable, "-m", "ember_mlx", "--check", "--device", f"tests.check_device:{device}", *map(str, arguments)]


def run(*arguments, bad="", device="host", limit=60):
    options = {"cwd": ROOT, "env": os.environ | {BAD: bad, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    return subprocess.run(command(*arguments, "--limit", limit, device=device), **options, timeout=300, check=False)


def results(path):
    return {key: result for one in read(path)[0] for key, result in one.results.items()}


@on_host
def test_the_whole_of_it(tmp_path):
    path = tmp_path / "check.jsonl"
    done = run("--json", path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(path)
    assert {result["stage"] for result in found.values()} == {"errors", "times", "peers", "memory", "sizes", "layouts", "tuning"}
    assert {key.split(": ")[1].split(" ")[0] for key in found if key.startswith("errors")} == set(RECURRENCES)
    assert {result["state"] for result in found.values()} <= {"works", "absent"}
    row = found["times: LSTM 4, B2 T3"]
    assert row["forward_launches"] == 1
    assert 0 < row["forward_estimate"] < row["both_estimate"]
    assert 0 < row["forward_least"] <= row["forward"] <= row["forward_largest"]
    assert found["memory: LSTM 4, B2 T3"]["peak"] > 0
    lines = done.stdout.splitlines()
    assert lines[-1] == f"all checks that ran passed: {len(found)} of {len(found)}"
    assert "times: CfC, LTC, LSTM and GRU of 64 units (1 of 1)" in lines


@on_host
def test_bad_workers_cost_a_line_each_and_are_tried_again(tmp_path):
    path = tmp_path / "check.jsonl"
    bad = "crash=errors: rnn tanh;hang=errors: lstm lstm;wrong=errors: gru gru;fail=errors: quantum lqnet"
    done = run("--quick", "--only", "rnn", "lstm", "gru", "quantum", "--json", path, bad=bad, limit=8)
    assert done.returncode == 1, done.stderr
    states = {key: result["state"] for key, result in results(path).items()}
    assert states == {
        "errors: rnn tanh": "CRASHED",
        "errors: lstm lstm": "HUNG",
        "errors: gru gru": "WRONG",
        "errors: quantum lqnet": "FAILED",
        "errors: quantum ctrqnet": "works",
        "times: LSTM 4, B2 T3": "works",
    }
    lines = done.stdout.splitlines()
    assert lines[-1] == "4 of 6 failed"
    assert "errors: rnn tanh: CRASHED: signal SIGABRT" in "\n".join(lines[-5:])
    assert "errors: lstm lstm: HUNG: no result after 8 s" in lines[-5:]
    assert lines[-3].startswith("errors: gru gru: WRONG, errors 5.0e-01 (outputs)")
    assert "errors: quantum lqnet: FAILED: RuntimeError: the device is lost" in lines[-5:]
    with path.open("a") as file:
        file.write('{"key": "errors: rnn ta')
    again = run("--quick", "--only", "rnn", "lstm", "gru", "quantum", "--json", path)
    assert again.returncode == 0, again.stdout
    assert f"{path}: 1 incomplete or unknown line is skipped" in again.stdout
    assert f"{path}: 2 results are reused" in again.stdout
    assert "errors: quantum ctrqnet: works" not in again.stdout
    assert again.stdout.splitlines()[-1] == "all checks that ran passed: 6 of 6"
    assert {result["state"] for result in results(path).values()} == {"works"}


@on_host
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_ends_it_with_the_table(tmp_path, number):
    bad = os.environ | {BAD: "hang=errors: lstm lstm", "PYTHONPATH": str(ROOT)}
    arguments = command("--quick", "--only", "rnn", "lstm", "--json", tmp_path / "check.jsonl")
    with subprocess.Popen(arguments, cwd=ROOT, env=bad, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("errors: rnn"):
                break
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == ""
    assert out.splitlines()[-1] == "all checks that ran passed: 1 of 3"
    assert "errors: every cell forward and backward against float64 (1 of 2)" in out


@on_host
def test_a_budget_ends_it():
    done = run("--quick", "--only", "rnn", "lstm", "gru", "--budget", 12, bad="hang=errors: lstm lstm")
    assert done.returncode == 1
    assert "the budget of 12 s is spent" in done.stdout
    assert "HUNG" in done.stdout.splitlines()[-2]


@on_host
def test_an_unknown_cell_names_those_there_are():
    done = run("--only", "lsm")
    assert done.returncode == 2
    expected = "[check] --only must name cells among cfc, ltc, rnn, lstm, gru, quantum, recurrent, got lsm."
    assert done.stderr == f"python -m ember_mlx: error: {expected}\n"


def test_without_a_gpu():
    done = run(device="no_gpu")
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == "no GPU is MLX's default device here: no kernel was checked"


def test_a_worker_that_does_not_start_is_told():
    done = run(device="nothing")
    assert done.returncode == 1
    assert "a worker did not start: exit status 1: AttributeError: module 'tests.check_device' has no attribute 'nothing'" in done.stdout


JOBS = [Job("errors", "rnn tanh", {}), Job("errors", "gru gru", {})]
WORKS = {"state": "works", "outputs": 1e-8, "gradients": 1e-8}


def test_results_of_another_machine_or_version_are_left_alone(tmp_path):
    path = tmp_path / "check.jsonl"
    first = Log(path, {"mlx": "0.32.4", "device_name": "Apple M1"})
    first.add(JOBS[0], WORKS)
    other = Log(path, {"mlx": "0.32.5", "device_name": "Apple M1"})
    assert other.results == {}
    assert other.notes == [f"{path}: 1 results of mlx 0.32.4 are ignored"]
    other.add(JOBS[1], WORKS)
    back = Log(path, {"mlx": "0.32.4", "device_name": "Apple M1"})
    assert list(back.results) == ["errors: rnn tanh"]
    assert [run.machine["mlx"] for run in read(path)[0]] == ["0.32.5", "0.32.4"]


def test_what_is_no_file_of_results_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello\n")
    with pytest.raises(ValueError, match=r"\[check\] --json must be a file of the check's results, got \S+notes.txt"):
        Log(path, {})
    path.write_text(json.dumps({"format": 99, "machine": {}, "date": ""}) + "\n")
    with pytest.raises(ValueError, match=r"\[check\] --json must be a file of format 1, got \S+notes.txt, of format 99"):
        Log(path, {})


def test_a_peers_failure_is_told_and_none_of_ours():
    job = Job("peers", "LSTM 64, torch LSTM", {"peer": "torch LSTM"})
    log = Log(None, {})
    log.add(job, {"state": "FAILED", "why": "NotImplementedError: MPS\n  cannot"})
    lines = lines_of(log, [job])
    assert "FAILED: NotImplementedError: MPS cannot" in "\n".join(lines)
    assert lines[-1] == "all checks that ran passed: 1 of 1"


def test_jobs_come_in_the_order_of_the_stages_and_each_once():
    jobs = all_jobs("metal")
    stages = [job.stage for job in jobs]
    assert [stage for stage in STAGES if stage != "sanitizer"] == list(dict.fromkeys(stages))
    assert stages == sorted(stages, key=list(STAGES).index)
    assert len({job.key for job in jobs}) == len(jobs)
    variants = {(job.given["recurrence"], job.given["variant"]) for job in jobs if job.stage == "layouts"}
    assert variants == {(name, variant) for name, one in RECURRENCES.items() for variant in one.variants}
    assert {job.stage for job in all_jobs("cuda")} == set(STAGES)
    assert cells_of(chosen(jobs, ("times",), ("cfc", "gru"))) == ["cfc", "gru"]
    json.dumps(jobs)


REPORT = ROOT / "benchmarks" / "report.py"


def made_up(path):
    log = Log(path, {"ember_mlx": "0.1.0", "mlx": "0.32.4", "numpy": "2.4", "python": "3.12", "system": "macOS", "kernels": "metal"})
    row, times = {"row": "LSTM 64, B32 T100"}, {"state": "works", "forward_estimate": 0.5, "both_estimate": 1.5}
    log.add(Job("errors", "lstm lstm", {}), {"state": "works", "outputs": 1e-7, "gradients": 2e-7})
    log.add(Job("errors", "gru gru", {}), {"state": "CRASHED", "why": "signal SIGABRT"})
    log.add(Job("times", row["row"], row), {**times, "forward": 0.25, "both": 1.0})
    log.add(Job("peers", "LSTM 64, B32 T100, torch LSTM", {**row, "peer": "torch LSTM"}), {"state": "works", "forward": 1.0, "both": 5.0})
    log.add(Job("peers", "LSTM 64, B32 T100, jax LSTM", {**row, "peer": "jax LSTM"}), {"state": "absent"})
    log.add(Job("memory", row["row"], row), {"state": "works", "peak": 2**21, "arrays": 2.5})
    for threads, both in ((128, 0.9), (256, 2.0)):
        log.add(Job("tuning", f"{row['row']}, {threads} threads", row), {**times, "forward": 0.2, "both": both})


def test_the_report_makes_tables(tmp_path):
    path = tmp_path / "mac.jsonl"
    made_up(path)
    command = [sys.executable, str(REPORT), "--print", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    lines = done.stdout.splitlines()
    assert "| **LSTM 64, B32 T100** | 0.25 ms | 0.50 ms | 1.00 ms | 1.50 ms |" in lines
    assert "| torch LSTM | 1.00 ms (4.0 x) |  | 5.00 ms (5.0 x) |  |" in lines
    assert not any("jax" in line for line in lines)
    assert "| LSTM 64, B32 T100 | 2.0 | 2.5 |" in lines
    assert "| lstm lstm | 1.0e-07 | 2.0e-07 |  |" in lines
    assert "| errors: gru gru | CRASHED | signal SIGABRT |" in lines
    best = lines[lines.index("**The best layouts**") + 4 :]
    assert best[1].startswith("| LSTM 64, B32 T100, 128 threads |")


def test_the_report_changes_what_is_between_the_marks(tmp_path):
    path, document = tmp_path / "mac.jsonl", tmp_path / "docs" / "benchmarks.md"
    made_up(path)
    document.parent.mkdir()
    script = tmp_path / "benchmarks" / "report.py"
    script.parent.mkdir()
    script.write_text(REPORT.read_text())
    document.write_text((ROOT / "docs" / "benchmarks.md").read_text())
    for _ in range(2):
        subprocess.run(
            [sys.executable, str(script), str(path)], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True
        )
    text = document.read_text()
    assert text.startswith("# Figures of GPUs")
    assert text.count("torch LSTM") == 1
    assert text.count("<!-- measured: ") == 2


def test_the_report_names_a_file_without_results(tmp_path):
    (tmp_path / "empty").touch()
    command = [sys.executable, str(REPORT), str(tmp_path / "empty")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 2
    assert "there are no results in these files" in done.stderr


@pytest.mark.parametrize(("status", "state"), [(0, "works"), (9, "FAILED")])
def test_a_sanitizers_verdict_is_the_jobs(tmp_path, monkeypatch, status, state):
    """With a fake compute-sanitizer that reports errors."""
    program = tmp_path / SANITIZER
    answer = json.dumps({"state": "works", "outputs": 0.0, "gradients": 0.0})
    program.write_text(f"#!/bin/sh\ncat > /dev/null\necho '========= Invalid __shared__ read'\necho '{answer}'\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    job = Job("sanitizer", "gru gru, racecheck", {"recurrence": "gru", "variant": "gru", "size": (5, 3, 31), "tool": "racecheck"})
    result = _sanitized(job, Options(), 30)
    assert result["state"] == state
    assert ("Invalid __shared__ read" in result.get("why", "")) == (status == 9)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert _sanitized(job, Options(), 30) == {"state": "absent"}


@pytest.mark.skipif(gpu_kind() is not None, reason="it would run the whole check on the GPU that is here")
def test_the_script_for_an_nvidia_host(tmp_path):
    """Without a GPU: the archive is unpacked, and the check reports the missing GPU."""
    out = tmp_path / "out"
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with tarfile.open(tmp_path / "mlx-cuda.tar.xz", "w:xz") as archive:
        archive.add(python, arcname="python3")
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "OUT": str(out), "PYTHONPATH": str(tmp_path)}
    script = [str(ROOT / "benchmarks" / "h100.sh"), str(tmp_path / "mlx-cuda.tar.xz")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert (out / "check.txt").read_text().splitlines()[-1] == "no GPU is MLX's default device here: no kernel was checked"
