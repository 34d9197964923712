"""What a person sees: the live line, the metrics, the pictures."""

import io
import json
import sys

import numpy as np
import pytest
import tiny
from PIL import Image

from deblur_mae_jax.data.audit import Leaks
from deblur_mae_jax.performance import chips
from deblur_mae_jax.reports import page
from deblur_mae_jax.training.progress import Progress, duration
from deblur_mae_jax.workdir import metric_writer, run_folder
from deblur_mae_jax.workdir.run_folder import Workdir

ROOT = tiny.ROOT


@pytest.mark.parametrize(
    ("near", "audit", "init_from", "said"),
    [
        (True, "near", "", "identical pixels, (patients are unknown), perceptual hashes; found none"),
        (False, "near", "", "similar volumes are not looked for"),
        (False, "identical", "runs/a", "identical pixels, (patients are unknown), (the images of pre-training are"),
    ],
)
def test_a_report_says_what_was_compared_between_the_splits(near, audit, init_from, said):
    text = page.audited(Leaks([], [], False, near), False, {"report.audit": audit, "init_from": init_from})
    assert said in text and ("perceptual hashes are for images" in text) == (not near and audit == "near")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_one_line_that_is_rewritten():
    stream = Terminal()
    say = Progress(stream)
    say.update("step 1", force=True)
    say.update("step 2", force=True)
    say.print("done")
    text = stream.getvalue()
    assert text.count("\r") >= 2 and text.count("\n") == 1 and text.endswith("done\n")


def test_a_log_file_gets_plain_lines_now_and_then():
    stream = io.StringIO()
    say = Progress(stream, plain_every=1000)
    for number in range(50):
        say.update(f"step {number}")
    say.print("done")
    assert stream.getvalue() == "step 0\ndone\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 00 s"), (3700, "1 h 01 min"), (200_000, "2 d 07 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_metrics_forget_what_a_resumed_run_writes_again(tmp_path):
    writer = metric_writer.Writer(Workdir(tmp_path))
    for step in (0, 1, 2, 3):
        writer.write_scalars(step, {"loss": 1.0 - step, "odd": float("nan")})
    writer.write_images(1, {"picture": np.zeros((8, 8, 3), np.uint8)})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    metric_writer.Writer(Workdir(tmp_path), resume_step=2, tensorboard=False).close()
    assert [line["step"] for line in metric_writer.read(Workdir(tmp_path))] == [0, 1, 2]
    assert metric_writer.read(Workdir(tmp_path))[0]["odd"] is None
    metric_writer.Writer(Workdir(tmp_path), resume_step=0, tensorboard=False).close()
    assert not metric_writer.read(Workdir(tmp_path)), "a run that starts anew judges its step 0 again"


def test_a_full_disk_ends_tensorboard_but_not_the_metrics(tmp_path, monkeypatch, caplog):
    writer = metric_writer.Writer(Workdir(tmp_path), tensorboard=False)
    writer._tensorboard = metric_writer._Events(tmp_path / "tensorboard", 0)  # also where CLU would write the files

    def full(event):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._tensorboard._writer, "write_event", full)
    for step in range(1, 30):
        writer.write_scalars(step, {"loss": 0.5})
        writer.write_images(step, {"sheet": np.zeros((4, 4, 3), np.uint8)})
    writer.flush()
    writer.close()
    assert caplog.text.count("no more TensorBoard files: No space left") == 1
    assert len(metric_writer.read(Workdir(tmp_path))) == 29


def test_sheets_of_an_earlier_start_are_not_shown(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.make_report()
    for left, start in (([0, 2], 2), ([], 0)):
        for step in (0, 2, 4):
            (workdir.report / f"reconstructions_{step:07d}.png").touch()
        run_folder.forget_later_sheets(workdir, start)
        assert [int(p.stem[-7:]) for p in sorted(workdir.report.iterdir())] == left


def test_tensorboard_can_read_the_files(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = metric_writer.Writer(Workdir(tmp_path))
    for step in range(5):
        writer.write_scalars(step, {"loss": float(step)})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == [0, 1, 2, 3, 4]


def test_peaks_are_found_by_the_names_jax_uses():
    assert chips.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert chips.peak_flops("TPU v5 lite") == 197e12
    assert chips.peak_flops("TPU v5p") == 459e12
    assert chips.peak_flops("cpu") is None


def test_sheets_show_the_pictures_they_are_given():
    ramp = np.tile(np.linspace(0, 255, 16)[None, :, None], (16, 1, 1))
    sheet = np.asarray(page.sheet([[ramp, 255 - ramp]], ["a", "b"], ["row\nlevel 3"]))
    assert sheet.ndim == 3 and sheet.std() > 20
    left, right = sheet[100, sheet.shape[1] // 2 - 40], sheet[100, -20]
    assert not np.array_equal(left, right)


@pytest.mark.slow
def test_the_contact_sheet_shows_every_degradation(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import show_degradations

    out = tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["show_degradations.py", "phantom", f"--output={out}"])
    show_degradations.main()
    assert capsys.readouterr().out.strip() == str(out)
    pixels = np.asarray(Image.open(out).convert("L"))
    assert pixels.shape[0] > 600 and pixels.shape[1] > 1000 and pixels.std() > 30
    monkeypatch.setattr(sys, "argv", ["show_degradations.py", "/no/such.png"])
    with pytest.raises(SystemExit, match="2"):
        show_degradations.main()
    assert "'/no/such.png' is not a file" in capsys.readouterr().err


def test_environment_names_versions_and_no_paths():
    text = json.dumps(run_folder.environment())
    assert '"jax":' in text and str(ROOT) not in text
