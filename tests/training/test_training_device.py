"""Device and number format: only what the machine has."""

from __future__ import annotations

import pytest
import torch

from troth.errors import ConfigError
from troth.training import choose_device
from troth.training.device import autocast


def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def with_cuda(monkeypatch: pytest.MonkeyPatch, bfloat16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    without_cuda(monkeypatch)
    assert choose_device("auto") == torch.device("cpu")
    assert choose_device("cpu") == torch.device("cpu")
    with_cuda(monkeypatch, True)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")


def test_cuda_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without_cuda(monkeypatch)
    with pytest.raises(ConfigError, match=r"run\.device = 'cuda'"):
        choose_device("cuda")


def computed_in(context: object) -> torch.dtype:
    with context:  # type: ignore[attr-defined]
        return torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype


def test_auto_on_a_cpu_is_float32_and_bfloat16_on_request() -> None:
    cpu = torch.device("cpu")
    assert computed_in(autocast(cpu, "auto")()) == torch.float32
    assert computed_in(autocast(cpu, "float32")()) == torch.float32
    assert computed_in(autocast(cpu, "bfloat16")()) == torch.bfloat16


def test_bfloat16_is_refused_where_cuda_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cuda(monkeypatch, False)
    with pytest.raises(ConfigError, match=r"train\.precision = 'bfloat16'"):
        autocast(torch.device("cuda"), "bfloat16")
    assert computed_in(autocast(torch.device("cuda"), "auto")()) == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_auto_on_cuda_with_bfloat16() -> None:
    with autocast(torch.device("cuda"), "auto")():
        x = torch.ones(2, 2, device="cuda")
        assert (x @ x).dtype == (torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32)
