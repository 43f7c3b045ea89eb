"""A decoder in a process of its own, which can be ended while a library in C works."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]  # ships no types
from PIL import Image

from infinity_emb.concurrency import start_isolated_python
from infinity_emb.errors import AudioCorruption, BadInput, ImageCorruption, Overloaded
from infinity_emb.preprocessing.media.decode import decode_audio, decode_image, no_limit
from infinity_emb.preprocessing.media.decoder import _PROGRAM, DecoderProcess
from tests.support.event_loop import PATIENCE_S


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    decoder = DecoderProcess(timeout_s=PATIENCE_S)
    yield decoder
    decoder.close()


def png(size: tuple[int, int] = (9, 6)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def wav(samples: np.ndarray, rate_hz: int = 8000) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate_hz, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def test_outputs_are_those_of_the_decoders(decoder: DecoderProcess) -> None:
    amounts: list[float] = []
    for size in ((9, 6), (300, 200)):
        data = png(size)
        pixels = decoder.decode_image(data, amounts.append)
        assert np.array_equal(pixels, np.asarray(decode_image(data)))
        assert pixels.flags.writeable
    sound = wav(np.random.default_rng(0).uniform(-1, 1, 4000).astype(np.float32))
    samples = decoder.decode_audio(sound, 16_000, amounts.append)
    assert np.array_equal(samples, decode_audio(sound, sampling_rate=16_000))
    assert amounts == [54, 60_000, 0.5]


def test_errors_are_those_of_the_decoders_and_the_process_goes_on(decoder: DecoderProcess) -> None:
    with pytest.raises(ImageCorruption, match="the format is unknown"):
        decoder.decode_image(b"no image", no_limit)
    with pytest.raises(AudioCorruption, match="cannot be read as audio"):
        decoder.decode_audio(b"no sound", 16_000, no_limit)
    assert decoder.decode_image(png(), no_limit).shape == (6, 9, 3)


def test_what_has_no_room_is_not_decoded(decoder: DecoderProcess) -> None:
    def refuse(amount: float) -> None:
        raise Overloaded("no room", retry_after_s=7)

    with pytest.raises(Overloaded, match="no room") as caught:
        decoder.decode_image(png()[:60], refuse)  # is broken behind its header
    assert caught.value.retry_after_s == 7
    assert decoder.decode_image(png(), no_limit).shape == (6, 9, 3)


def test_a_file_that_takes_too_long_is_refused_and_the_next_one_decoded(decoder: DecoderProcess) -> None:
    hasty = DecoderProcess(timeout_s=0.001)
    try:
        with pytest.raises(ImageCorruption, match=r"decoding takes over 0.001 s; send a smaller or simpler"):
            hasty.decode_image(png((1000, 1000)), no_limit)
    finally:
        hasty.close()
    assert decoder.decode_image(png(), no_limit).shape == (6, 9, 3)


def test_a_killed_decoder_refuses_its_file_and_decodes_the_next_one(decoder: DecoderProcess) -> None:
    with pytest.raises(BadInput, match="its decoder crashed"):
        decoder.decode_image(png(), lambda amount: decoder.kill())  # asked for before decoding
    assert decoder.decode_image(png(), no_limit).shape == (6, 9, 3)
    decoder.kill()
    assert decoder.decode_image(png(), no_limit).shape == (6, 9, 3)


def test_nothing_of_the_working_directory_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: DecoderProcess
) -> None:
    for name in ("json", "numpy", "PIL", "infinity_emb", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert decoder.decode_image(png(), no_limit).shape == (6, 9, 3)
    assert not (tmp_path / "was_run").exists()


def test_a_closed_decoder_has_no_process(decoder: DecoderProcess) -> None:
    decoder.decode_image(png(), no_limit)
    process = decoder._process
    assert process is not None
    decoder.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    decoder.close()


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_decoder_whose_server_has_ended_ends_without_a_traceback(
    capfd: pytest.CaptureFixture[str], is_complete: bool
) -> None:
    job = json.dumps({"kind": "image", "num_bytes": len(png())}).encode()
    process = start_isolated_python(_PROGRAM)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.close()
        with process.stdin as stdin:
            stdin.write(job + b"\n" + png() if is_complete else job[:9])
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
    assert capfd.readouterr().err == ""
