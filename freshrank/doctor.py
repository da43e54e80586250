"""Is this machine fit to run freshrank? Each check says what it found and how to mend it."""

import errno
import http.client
import importlib
import importlib.metadata
import importlib.util
import json
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from freshrank import memory
from freshrank.config import demo_text, digest, load, loads
from freshrank.diagnostics import InvalidConfigError
from freshrank.doctor_servers import event_time, servers, stored
from freshrank.findings import Finding
from freshrank.settings import ServiceSettings, Settings

# A log partition, its checkpoints and parameters of the demo take some 100 MB; below this the
# first retention period may fill the disk.
FREE_BYTES_MIN: Final = 1 << 30

# Everything that learns; `pip install 'freshrank[train]'` brings it.
TRAIN_MODULES: Final = ("torch", "onnx", "onnxscript", "pyarrow", "safetensors")
TRAIN_MEND: Final = "pip install 'freshrank[train]'"

# Top-level packages of ours whose names others on PyPI use too.
SHARED_NAMES: Final = ("service", "trainer")

ANSWER_TIMEOUT_S: Final = 1.0
ANSWER_BYTES_MAX: Final = 1 << 16

DAY_S: Final = 86_400.0


def examine(path: Path, *, environ: Mapping[str, str]) -> list[Finding]:
    """All checks. Nothing is changed on the machine.

    Args:
        path: The configuration file; without one the demo's configuration is examined.
        environ: Environment variables that override it.
    """
    finding, settings = configuration(path, environ)
    service = settings.service if settings else ServiceSettings()
    found = [
        python(sys.version_info[:3]),
        packages(importlib.metadata.requires("freshrank") or []),
        native_core(importlib.import_module),
        onnxruntime(is_installed),
        learning(is_installed),
        *(owner(name, owners(name), home(name)) for name in SHARED_NAMES),
        finding,
        data_directory(service.data_dir, free_bytes),
        port(service.host, service.port, digest(settings) if settings and path.exists() else None),
        clock(time.time(), Path(__file__).stat().st_mtime),
    ]
    if settings is not None:
        found.append(memory.finding(settings))
        if settings.metrics.port:
            found.append(metrics_port(settings.metrics.host, settings.metrics.port))
        if is_installed("safetensors"):  # where a trainer can have saved something
            found.append(stored(settings))
        found.append(event_time(settings, time.time()))
        found += servers(settings)
    return found


def python(version: Sequence[int]) -> Finding:
    """Python 3.11 or newer."""
    text = ".".join(map(str, version))
    return Finding("python", tuple(version) >= (3, 11), text, "install Python 3.11 or newer")


def packages(requirements: Iterable[str]) -> Finding:
    """The packages that are installed are of versions that freshrank works with.

    Args:
        requirements: Of freshrank, as its metadata lists them; those of an extra that is not
            installed may be absent.
    """
    wrong, n_fit = [], 0
    for one in map(Requirement, requirements):
        is_base = one.marker is None or one.marker.evaluate({"extra": ""})
        try:
            version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            if is_base:
                wrong.append((one, "is missing"))
            continue
        if one.specifier.contains(version, prereleases=True):
            n_fit += 1
        else:
            wrong.append((one, f"has version {version}, needed is {one.specifier}"))
    if wrong:
        mend = "pip install " + " ".join(f"'{one.name}{one.specifier}'" for one, _ in wrong)
        text = "; ".join(f"{one.name} {what}" for one, what in wrong)
        return Finding("packages", False, text, mend)
    return Finding("packages", True, f"{n_fit} of the versions that are needed")


def native_core(import_module: Callable[[str], object]) -> Finding:
    """The compiled tables load."""
    try:
        version = getattr(import_module("embedding_store"), "FORMAT_VERSION", None)
    except ImportError as error:
        mend = "install a C++20 compiler (apt-get install g++), then `pip install .` again"
        return Finding("native core", False, f"does not load: {error}", mend)
    return Finding("native core", True, f"loads, format version {version}")


def is_installed(module: str) -> bool:
    """Whether the module could be imported; it is not imported."""
    return importlib.util.find_spec(module) is not None


def onnxruntime(is_installed: Callable[[str], bool]) -> Finding:
    """The service's scorer."""
    ok = is_installed("onnxruntime")
    return Finding("onnxruntime", ok, "present" if ok else "missing", "pip install freshrank")


def learning(is_installed: Callable[[str], bool]) -> Finding:
    """The extra `train`: whole, or left out on purpose."""
    missing = [module for module in TRAIN_MODULES if not is_installed(module)]
    if not missing:
        return Finding("torch", True, "present: this installation learns")
    if "torch" in missing:
        return Finding("torch", True, f"absent: ranking only; to learn: {TRAIN_MEND}")
    return Finding("torch", False, f"present, but not {', '.join(missing)}", TRAIN_MEND)


def owners(name: str) -> list[str]:
    """Distributions that installed a top-level package of this name, without ours."""
    named = importlib.metadata.packages_distributions().get(name, [])
    return sorted({owner for owner in named if owner != "freshrank"})


def home(name: str) -> Path | None:
    """The directory that holds the package which `import name` finds."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    # Not the first search location: of an editable installation native modules lie elsewhere.
    found = spec.origin or next(iter(spec.submodule_search_locations or ()), None)
    if found is None:
        return None
    is_package = spec.origin is not None and spec.submodule_search_locations is not None
    return Path(found).parent.parent if is_package else Path(found).parent


def owner(name: str, others: Sequence[str], found_in: Path | None) -> Finding:
    """The package is ours alone: a second owner overwrites files of the first."""
    ours = Path(__file__).parent.parent
    if others:
        mend = f"pip uninstall {' '.join(others)}, then install freshrank again"
        return Finding(name, False, f"also installed by {', '.join(others)}", mend)
    if found_in is None or found_in.resolve() != ours.resolve():
        mend = "start through the console script `freshrank`, away from that directory"
        return Finding(name, False, f"found in {found_in}, freshrank is in {ours}", mend)
    return Finding(name, True, "belongs to freshrank alone")


def configuration(path: Path, environ: Mapping[str, str]) -> tuple[Finding, Settings | None]:
    """The configuration can be read."""
    try:
        if path == Path("freshrank.yaml") and not path.exists():
            settings = loads(demo_text(), name="demo.yaml", environ=environ)
            return Finding("configuration", True, f"no {path} here, the demo's is used"), settings
        settings = load(path, environ=environ)
    except InvalidConfigError as error:
        return Finding("configuration", False, str(error), "correct what is listed"), None
    return Finding("configuration", True, f"{path} is valid"), settings


def free_bytes(directory: Path) -> int:
    """Free bytes of the directory's file system."""
    return shutil.disk_usage(directory).free


def data_directory(directory: Path, free_bytes: Callable[[Path], int]) -> Finding:
    """The data directory, or what will hold it, is writable and has room."""
    existing = directory.absolute()
    name, mend = f"data directory {directory}", "set service.data_dir to another directory"
    try:
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            return Finding(name, False, f"{existing} is not a directory", mend)
        # Asking by a file is certain: root passes os.access on a read-only file system.
        with tempfile.TemporaryFile(dir=existing):
            n_free = free_bytes(existing)
    except OSError as error:
        return Finding(name, False, f"cannot write in {existing}: {error.strerror}", mend)
    text = f"writable, {n_free / (1 << 30):.1f} GiB free"
    return Finding(name, n_free >= FREE_BYTES_MIN, text, f"free 1 GiB, or {mend}")


def port(host: str, number: int, config_hash: str | None = None) -> Finding:
    """Nobody else listens where the service will; freshrank itself may.

    Args:
        host: Where it will listen.
        number: The port.
        config_hash: Of the configuration examined; None takes any freshrank for this one.
    """
    name = f"port {number}"
    error = _refusal(host, number)
    if error is None:
        return Finding(name, True, f"free on {host}")
    mend = "stop the other program, or set FRESHRANK__SERVICE__PORT to another port"
    answer = answer_of(host, number) if error.errno == errno.EADDRINUSE else None
    if answer is None:
        return Finding(name, False, f"cannot listen on {host}: {error.strerror}", mend)
    theirs = answer.get("config_hash")
    if config_hash is None or theirs in (None, config_hash):  # without a key it says no more
        return Finding(name, True, "freshrank answers here")
    told = f"{answer.get('version')} with configuration {theirs}, not {config_hash}"
    return Finding(name, False, f"another freshrank answers here: {told}", mend)


def metrics_port(host: str, number: int) -> Finding:
    """Nobody but a joiner or trainer listens where these answer Prometheus."""
    name, error = f"port {number} of metrics", _refusal(host, number)
    if error is None:
        return Finding(name, True, f"free on {host}")
    if error.errno == errno.EADDRINUSE and _asked(host, number, "/health/live") == {"live": True}:
        return Finding(name, True, "freshrank answers here")
    mend = "stop the other program, or set FRESHRANK__METRICS__PORT to another port"
    return Finding(name, False, f"cannot listen on {host}: {error.strerror}", mend)


def _refusal(host: str, number: int) -> OSError | None:
    """Why nobody could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the service does
        try:
            listener.bind((host, number))
            listener.listen(1)
        except OSError as error:
            return error
    return None


def answer_of(host: str, number: int) -> Mapping[str, object] | None:
    """What freshrank says there of its version, or that it wants a key; None: it is another."""
    document = _asked(host, number, "/v1/version")
    is_ours = "config_hash" in document or document.get("type") == "/problems/unauthorized"
    return document if is_ours else None


def _asked(host: str, number: int, path: str) -> Mapping[str, object]:
    """The JSON object that a path answers with; empty where it does not."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not listening
    connection = http.client.HTTPConnection(address, number, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", path)
        document = json.loads(connection.getresponse().read(ANSWER_BYTES_MAX))
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()
    return document if isinstance(document, dict) else {}


def clock(now_s: float, installed_s: float) -> Finding:
    """The clock is not behind the files of this installation, nor in another century.

    Event time rules expiry and lateness: a clock years off would expire every row, or none.
    """
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    is_behind = now_s < installed_s - DAY_S
    is_ahead = now_s > 4_102_444_800  # 2100-01-01
    mend = "set the clock, for example by NTP"
    return Finding("clock", not (is_behind or is_ahead), text, mend)
