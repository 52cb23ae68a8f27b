"""Run another library's own tests, unpatched and under `triton_stn.patch`, and compare.

    python tests/peers.py kornia PATH_TO_ITS_CHECKOUT [--backend triton] [PYTEST ARGUMENTS ...]

What the checkout's tests need must be installed; the library itself is the checkout. Exits with 1
where a test fails that passes unpatched. It is its own pytest plugin.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

# What of each library's tests warps.
PEERS = {
    "kornia": ["tests/geometry/transform"],
    "monai": [
        "tests/networks/layers/test_affine_transform.py",
        "tests/networks/blocks/warp",
        "tests/networks/nets/test_globalnet.py",
        "tests/integration/test_integration_stn.py",
        "tests/transforms/spatial",
        *(
            f"tests/transforms/test_{name}.py"
            for name in (
                "resampler", "spatial_resample", "resample_to_match", "resample_backends",
                "affine", "affined", "affine_grid", "rand_affine", "rand_affined",
                "rand_affine_grid", "rotate", "rotated", "rand_rotate", "rand_rotated",
                "zoom", "zoomd", "rand_zoom", "rand_zoomd", "resize", "resized",
                "spacing", "spacingd", "orientation", "rotate90", "flip", "rand_rotate90",
                "rand_elastic_2d", "rand_elastic_3d", "rand_elasticd_2d", "rand_elasticd_3d",
                "grid_distortion", "rand_grid_distortion", "smooth_field",
            )
        ),
    ],
}  # fmt: skip
HERE = Path(__file__).resolve().parent


class Plugin:
    """Of the process that runs the library's tests."""

    def __init__(self, out: str, backend: str, patched: bool) -> None:
        import triton_stn

        self.out, self.outcomes = Path(out), {}
        self.stn = triton_stn
        self.backend = triton_stn.use_backend(backend)
        self.backend.__enter__()
        if backend == "triton":
            import interpreter

            interpreter.hasten()
        if patched:
            triton_stn.patch()

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":  # setup fails, or skips
            self.outcomes[report.nodeid] = report.outcome

    def pytest_collectreport(self, report):
        if report.failed:
            self.outcomes[report.nodeid] = "failed"

    def pytest_sessionfinish(self):
        report = self.stn.patch.report()
        counts = dict(vars(report), left=dict(report.left))
        self.out.write_text(json.dumps({"outcomes": self.outcomes, "counts": counts}))


def pytest_configure(config):
    settings = json.loads(os.environ["TRITON_STN_PEERS"])
    config.pluginmanager.register(Plugin(**settings))


def run(checkout: Path, arguments: list[str], backend: str, patched: bool) -> dict:
    """{"outcomes": of each test, "counts": of the calls}."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "outcomes.json")
        settings = dict(out=str(out), backend=backend, patched=patched)
        paths = [str(checkout), str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TRITON_INTERPRET": "1" if backend == "triton" else "0",
            "TRITON_STN_PEERS": json.dumps(settings),
        }
        command = [sys.executable, "-m", "pytest", "-p", "peers", "-p", "no:cacheprovider", "-q"]
        command += ["--continue-on-collection-errors", "--tb=line", "--no-header", *arguments]
        process = subprocess.run(command, cwd=checkout, env=environment, check=False)
        if not out.exists():
            raise SystemExit(f"pytest ended with {process.returncode}")
        return json.loads(out.read_text())


def compare(plain: dict, patched: dict) -> list[str]:
    """Prints what came of both; returns what only the patched run fails."""
    for name, outcomes in (("unpatched", plain["outcomes"]), ("patched", patched["outcomes"])):
        counts = Counter(outcomes.values())
        print(f"{name}: {len(outcomes)} tests,", ", ".join(f"{n} {o}" for o, n in counts.items()))
    counts = patched["counts"]
    for name in ("lazy_grids", "spatial_transform", "grid_sample"):
        print(f"{counts[name]:8d}  {name}")
    for reason, count in sorted(counts["left"].items(), key=lambda item: -item[1]):
        print(f"{count:8d}  left to PyTorch, {reason}")
    broken = [
        test
        for test, outcome in patched["outcomes"].items()
        if outcome == "failed" and plain["outcomes"].get(test) != "failed"
    ]
    missing = plain["outcomes"].keys() - patched["outcomes"].keys()
    return broken + sorted(missing)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--backend", default="torch", choices=["torch", "triton", "auto"])
    options, arguments = parser.parse_known_args()
    checkout = options.checkout.resolve()
    tests = arguments or []
    if not any(Path(checkout, argument.split("::")[0]).exists() for argument in arguments):
        tests = PEERS[options.peer] + arguments
    plain, patched = (run(checkout, tests, options.backend, on) for on in (False, True))
    broken = compare(plain, patched)
    for test in broken:
        print(f"passes unpatched alone: {test}")
    return bool(broken)


if __name__ == "__main__":
    raise SystemExit(main())
