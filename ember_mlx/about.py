"""The facts for a bug report: versions, system, device, kernels, extras, without the names of the user, the host or the home folder."""

import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
from typing import Any

from . import __version__

DISTRIBUTION = "ember-mlx"
PATIENCE = 60.0  # seconds for MLX's answer
NO_KERNELS = "none, the CPU runs NumPy scans"


def about() -> list[str]:
    """The lines of `python -m ember_mlx`; they are printed even if MLX or the device does not work."""
    told = asked()
    set_here = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("EMBER_MLX_")]
    lines = [
        f"ember_mlx {__version__}, mlx {_version('mlx')}, numpy {_version('numpy')}, python {platform.python_version()}",
        f"system    {platform.platform()}",
        f"device    {told.get('device', 'not known')}",
        f"backend   {told.get('backend', 'not known')}; kernels: {told.get('kernels', 'not known')}",
        *([f"tiles     {told['tiles']}"] if "tiles" in told else []),
        f"set       {', '.join(set_here) or 'no EMBER_MLX_ variable'}",
        f"extras    {_extras()}",
    ]
    return [without_names(line) for line in lines]


def where_to() -> list[str]:
    """Instructions for a bug report."""
    return [
        "",
        f"Report a bug at {_issues()}",
        "Please include these lines, the code that shows the bug, and the whole error message.",
        "python -m ember_mlx --check --quick compiles, checks and times the main kernels on this machine's GPU.",
    ]


def asked() -> dict[str, Any]:
    """MLX's description of the device, from a separate process, since MLX may crash or hang."""
    try:
        done = subprocess.run([sys.executable, "-m", "ember_mlx.about"], capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return {"device": f"not known, since MLX did not answer within {PATIENCE:.0f} s"}
    answers = [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith("{")]
    told: dict[str, Any] = json.loads(answers[-1]) if answers else {}
    if done.returncode:
        how = f"signal {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"status {done.returncode}"
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        told["device"] = f"{told.get('device', 'not known')}; MLX ended its process with {how}: {last}"
    return told


def without_names(text: str) -> str:
    """The text with home folders, the user's name in them, and the host's name removed."""
    home = os.path.expanduser("~")  # Path.home raises if the user has none
    if len(home) > 1:
        text = text.replace(home, "~")
    text = re.sub(r"(/Users|/home)/[^/\s:,'\"]+", "~", text)
    host = platform.node()
    names = {host, host.split(".")[0]} - {"", "localhost"}
    return re.sub("|".join(rf"(?<![\w.-]){re.escape(name)}(?![\w-])" for name in sorted(names, reverse=True)) or r"(?!)", "HOST", text)


def _told() -> dict[str, Any]:
    try:
        import mlx.core as mx
    except ImportError as error:
        return {"device": f"not known, since MLX cannot be imported: {_line(error)}"}
    told: dict[str, Any] = {}
    try:
        told["backend"] = _backend()
        told["device"] = str(mx.default_device())
        info = {name: value for name, value in mx.device_info().items() if name in ("device_name", "architecture", "memory_size")}
        told["device"] = ", ".join([told["device"], *(f"{name} {value}" for name, value in info.items())])
        mx.eval(mx.ones((8,)) + 1)
    except Exception as error:
        told["device"] = f"{told.get('device', 'not known')}, which fails: {type(error).__name__}: {_line(error)}"
        return told
    return told | _kernels()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _backend() -> str:
    from .backend import current_backend

    try:
        return current_backend()
    except ValueError as error:
        return _line(error)


def _kernels() -> dict[str, str]:
    from .check.worker import kernels_here
    from .kernels.tiles import current_family

    kind = kernels_here()
    return {"kernels": NO_KERNELS} if kind is None else {"kernels": kind, "tiles": str(current_family())}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _extras() -> str:
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "not known, since the package runs from a folder and is not installed"
    whole, part, none = [], [], []
    for extra in metadata.get_all("Provides-Extra") or []:
        needed = _needed(extra)
        missing = [name for name in needed if _version(name) == "not installed"]
        if not missing:
            whole.append(extra)
        elif len(missing) < len(needed):
            part.append(f"{extra} (without {', '.join(missing)})")
        else:
            none.append(extra)
    kinds = {"": whole, "in part ": part, "not ": none}
    return "; ".join(kind + ", ".join(extras) for kind, extras in kinds.items() if extras)


def _needed(extra: str) -> list[str]:
    """The distributions that an extra of this package requires on this platform, including those of extras that it names."""
    needed: list[str] = []
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        requirement, _, marker = line.partition(";")
        found = re.match(r"([\w.-]+)(?:\[([\w,.-]+)\])?", requirement.strip())
        if found is None or not re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", marker) or not _applies(marker):
            continue
        needed += [name for inner in found[2].split(",") for name in _needed(inner)] if found[1] == DISTRIBUTION else [found[1]]
    return list(dict.fromkeys(needed))


def _applies(marker: str) -> bool:
    here = {"sys_platform": sys.platform, "platform_machine": platform.machine()}
    return all(here[name] == value for name, value in re.findall(r"(sys_platform|platform_machine) == ['\"](\w+)['\"]", marker))


def _issues() -> str:
    try:
        urls = importlib.metadata.metadata(DISTRIBUTION).get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        urls = []
    return dict(url.split(", ", 1) for url in urls).get("Issues", "the Issues page that pyproject.toml names")


if __name__ == "__main__":
    print(json.dumps(_told()))
