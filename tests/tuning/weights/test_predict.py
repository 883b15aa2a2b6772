"""`predict.py` of an exported folder, run as a user does."""

import subprocess
import sys

from PIL import Image

from tuning.weights.export import export_weights


def test_an_image_that_cannot_be_read_does_not_stop_the_others(real, tmp_path):
    folder = export_weights(real[0], tmp_path / "model", trial="trial-000")
    names = ["first.png", "cut.png", "text.jpg", "missing.jpg", "last.png"]
    for name in (names[0], names[-1]):
        Image.effect_noise((64, 64), 50).save(folder / name)
    whole = (folder / "first.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not an image")
    done = subprocess.run(
        [sys.executable, "predict.py", *names], cwd=folder, capture_output=True, text=True
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["first.png", "last.png"]
    said = [line.split(": ")[0] for line in done.stderr.splitlines()]
    assert said == ["cut.png", "text.jpg", "missing.jpg"]
    assert done.returncode == 1
