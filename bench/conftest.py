"""Collects the rows of all benchmarks into one table, printed and written at the end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import QUICK, Report

HERE = Path(__file__).resolve().parent
REPORT = Report()
COLLECTED = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", available)))


@pytest.fixture(scope="session")
def report() -> Report:
    return REPORT


def results_file(config: pytest.Config, collected: set[str]) -> Path | None:
    """Where the table goes: BENCH_RESULTS, or RESULTS.md after a full run, or nowhere."""
    if os.environ.get("BENCH_RESULTS"):
        return Path(os.environ["BENCH_RESULTS"])
    everything = {path.name for path in HERE.glob("test_*.py")}
    partial = QUICK or config.option.keyword or collected != everything
    return None if partial else HERE / "RESULTS.md"


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[COLLECTED] = {Path(item.path).name for item in session.items}


def records(name: str, count: str) -> tuple[list[dict[str, Any]], str]:
    """What a long run of tests (marked slow) has left in results/, and which seeds those were."""
    files = sorted((HERE / "results" / name).glob("*.json"))
    found = [json.loads(file.read_text()) for file in files]
    seeds = [f"{f['first']}-{f['first'] + f[count] - 1}" for f in found]
    return found, f"{len(seeds)} runs: {seeds[0]} ... {seeds[-1]}" if seeds else ""


def add_random_graphs(report: Report) -> None:
    found, seeds = records("random_graphs", "graphs")
    if found:
        report.add(
            "Random graphs against the fp64 oracle",
            {
                "seeds": seeds,
                "graphs": str(sum(f["graphs"] for f in found)),
                "moved by their boxes": str(sum(f["moved"] for f in found)),
                "largest error, fp32": f"{max(f['fp32'] for f in found):.0e}",
                "largest error, fp64": f"{max(f['fp64'] for f in found):.0e}",
            },
        )
        report.remark(
            "Random graphs against the fp64 oracle",
            "Errors as a share of the largest |drop| of each graph; the tests allow 1e-3 and 1e-9. "
            "Not timed: from the last run of `pytest -m slow tests/test_occlusion_oracle.py`.",
        )


def add_configurations(report: Report) -> None:
    found, seeds = records("deconv_configurations", "configurations")
    if found:
        section = "Random configurations of subpixel_deconv against torch's"
        report.add(
            section,
            {
                "seeds": seeds,
                "configurations": str(sum(f["configurations"] for f in found)),
                "with an output": str(sum(f["not empty"] for f in found)),
            },
        )
        report.remark(
            section,
            "Not timed: from the last run of `pytest -m slow tests/ops/test_subpixel_deconv.py`.",
        )


def add_large_image(report: Report) -> None:
    """What the last `make bench-large` has left, beside what is measured now."""
    file = HERE / "results" / "large.json"
    if file.exists():
        kept = json.loads(file.read_text())
        if kept["section"] not in report.sections:
            for row in kept["rows"]:
                report.add(kept["section"], row)
            for text in kept["remarks"]:
                report.remark(kept["section"], text)
            report.remark(kept["section"], "From the last run of `make bench-large`.")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not REPORT.sections:
        return
    add_random_graphs(REPORT)
    add_configurations(REPORT)
    add_large_image(REPORT)
    text = REPORT.markdown()
    terminalreporter.write_line("")
    terminalreporter.write_line(text)
    path = results_file(config, config.stash.get(COLLECTED, set()))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        terminalreporter.write_line(f"written to {path}")
