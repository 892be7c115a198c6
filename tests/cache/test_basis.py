"""The calibrated basis: its algebra, what it is refused for, and that 2:4 along its axes costs scores less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hsbench.cache.basis import EXACT, Basis, BasisSource, LayerBasis, deal, make_basis, mirror
from hsbench.errors import UsageError

GEOMETRY = {"layers": 2, "q_heads": 4, "kv_heads": 2, "head_dim": 64, "max_positions": 99, "vocab": 9}
SOURCE = BasisSource("A", "1234", GEOMETRY, "ab", 7)


def heads(kv_heads: int = 2, d: int = 64, tokens: int = 4000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k ``[kv_heads, tokens, d]`` with axes of very different strength, not aligned with the channels."""
    torch.manual_seed(seed)
    turns = [torch.linalg.qr(torch.randn(kv_heads, d, d))[0] for _ in "qk"]
    q, k = (torch.randn(kv_heads, tokens, d) * torch.logspace(0.5, -0.5, d) @ turn for turn in turns)
    return q, k


def two_of_four(x: torch.Tensor) -> torch.Tensor:
    groups = x.unflatten(-1, (-1, 4))
    kept = groups.abs().topk(2, -1).indices
    return torch.zeros_like(groups).scatter(-1, kept, groups.gather(-1, kept)).flatten(-2)


def made(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return make_basis(q.mT @ q / q.shape[1], torch.stack([torch.cov(head.T, correction=0) for head in k]))


@pytest.fixture
def basis() -> Basis:
    read, store = made(*heads())
    layer = LayerBasis(torch.randn(2, 64), torch.randn(2, 64), read, store)
    return Basis(SOURCE, {0: layer, 1: replace(layer, key_mean=torch.zeros(2, 64))})


def test_scores_are_the_same_and_keys_come_back() -> None:
    q, k = heads()
    read, store = made(q, k)
    assert torch.equal(read, read.bfloat16().float())
    exact = (q.double() @ read.double()) @ (k.double() @ store.double()).mT
    torch.testing.assert_close(exact, q.double() @ k.double().mT, rtol=1e-5, atol=1e-4)
    back = (k.double() @ store.double()) @ read.double().mT
    assert float((back - k).norm() / k.norm()) <= EXACT
    for tensor in (q @ read, k @ store):
        assert float(tensor.abs().max()) < 1000  # far from the end of fp16


def test_it_whitens_q_and_each_group_holds_one_axis_of_each_quarter() -> None:
    q, k = heads()
    read, store = made(q, k)
    spread = torch.cov((k[0] @ store[0]).T)
    apart = spread - spread.diagonal().diag()
    assert float(apart.abs().max()) < 0.05 * float(spread.diagonal().max())
    energies = (q[0] @ read[0]).square().mean(0)
    assert float(energies.max() / energies.min()) < 1.5
    ranks = spread.diagonal().argsort(descending=True).argsort().reshape(-1, 4)
    quarters = ranks.sort(dim=1).values // 16
    assert (quarters == torch.arange(4)).float().mean() > 0.9  # neighbours of almost one strength may change places


def test_channels_are_scaled_by_the_rms_of_q_in_the_order_mirror() -> None:
    q, k = heads()
    q = q * torch.logspace(0.5, -0.5, 64)
    read, store = make_basis(q.mT @ q / q.shape[1], torch.zeros(2, 64, 64), "channels")
    assert torch.equal(read, read.bfloat16().float()) and (read != 0).sum(1).eq(1).all()
    assert float((read @ store.mT - torch.eye(64)).abs().max()) <= EXACT
    assert read[0].nonzero()[:, 0].sort().values.tolist() == list(range(64))
    assert [int(read[0][:, place].nonzero()) for place in range(4)] == [0, 31, 32, 63] == mirror(64)[:4].tolist()
    rms = (q[0] @ read[0]).square().mean(0).sqrt()
    assert float(rms.max() / rms.min()) < 1.02
    torch.testing.assert_close((q @ read) @ (k @ store).mT, q @ k.mT, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="not finite"):
        make_basis(torch.full((1, 64, 64), torch.nan), torch.zeros(1, 64, 64), "channels")


def test_deal_is_a_permutation() -> None:
    for d in (64, 128):
        assert deal(d).sort().values.tolist() == list(range(d))
        assert (deal(d).reshape(-1, 4) // (d // 4) == torch.arange(4)).all()


def test_pruning_along_it_costs_scores_less() -> None:
    q, k = heads()
    read, store = made(q, k)
    scores = q[:, :256] @ k.mT
    plain = q[:, :256] @ two_of_four(k).mT
    ours = (q[:, :256] @ read) @ two_of_four(k @ store).mT
    assert float((ours - scores).norm()) < 0.5 * float((plain - scores).norm())


def test_a_head_that_nothing_reads_still_has_one() -> None:
    _, k = heads()
    read, store = made(torch.zeros(2, 10, 64), k)
    assert float((read[0] @ store[0].T - torch.eye(64)).abs().max()) <= EXACT


def test_keys_that_lie_in_a_plane() -> None:
    q, k = heads()
    k[:, :, 2:] = 0
    read, store = made(q, k)
    assert torch.isfinite(store).all() and float((read[1] @ store[1].T - torch.eye(64)).abs().max()) <= EXACT


def test_what_is_not_finite_is_refused() -> None:
    q, k = heads()
    q[0, 0, 0] = float("nan")
    with pytest.raises(Exception):  # noqa: B017 - torch's own, or ours
        made(q, k)


def test_a_file_comes_back(basis: Basis, tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    basis.save(path)
    again = Basis.load(path)
    assert again.source == SOURCE and again.layers.keys() == {0, 1}
    for i in (0, 1):
        for name, tensor in vars(basis.layer(i)).items():
            assert torch.equal(getattr(again.layer(i), name), tensor)
    assert [file.name for file in tmp_path.iterdir()] == ["b.safetensors"]
    assert again.check_model("A", "1234") is None and again.check_heads(2, 64) is None


def test_another_models_or_geometrys_is_refused(basis: Basis, tmp_path: Path) -> None:
    basis.save(tmp_path / "b")
    basis = Basis.load(tmp_path / "b")
    with pytest.raises(UsageError, match="^basis .*b: is of A, not of this B; hsbench calibrate makes one for it$"):
        basis.check_model("B", "5678")
    with pytest.raises(UsageError, match=r"is for 2 kv heads x 64 \(A\), not for 8 x 128"):
        basis.check_heads(8, 128)
    with pytest.raises(UsageError, match="has no layer 2"):
        basis.layer(2)


def test_what_is_no_basis_is_refused(basis: Basis, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a basis")
    save_file({"layers.0.k": torch.zeros(2)}, tmp_path / "other", {"format": "hsbench-capture/1"})
    basis.save(tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-100])
    save_file({"layers.0.read": torch.zeros(2)}, tmp_path / "lacking", {"format": "hsbench-basis/1", "source": "{}"})
    for name, what in (
        ("none", "no such file"),
        ("text", "not a hsbench-basis/1 file, but something else"),
        ("other", "not a hsbench-basis/1 file, but hsbench-capture/1"),
        ("cut", "not a hsbench-basis/1 file"),
        ("lacking", "damaged"),
    ):
        with pytest.raises(UsageError, match=what) as caught:
            Basis.load(tmp_path / name)
        assert caught.value.option == "basis" and "hsbench calibrate" in str(caught.value)
