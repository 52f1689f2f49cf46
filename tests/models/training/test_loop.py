from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import InvalidConfig, InvalidModel, InvalidVolume
from models.geometry import NEAREST
from models.networks.rsunet import RSUNet, RSUNetConfig
from models.training.augmentation import AugmentationOptions
from models.training.loop import LoopOptions, Trainer, read_checkpoint
from models.training.sampler import LabelledVolume, PatchSampler

OFFSETS = (*NEAREST, (0, 0, -3))
NETWORK = RSUNetConfig.isotropic(4, (4, 6))
NM = (10.0, 10.0, 10.0)


@pytest.fixture(scope="module")
def volume() -> LabelledVolume:
    """Slabs of two labels with dark walls between them."""
    labels = np.repeat(np.arange(1, 9), 6)[None, None, :].repeat(30, 0).repeat(36, 1)
    image = np.where(np.arange(48) % 6 == 0, 40, 180).astype(np.uint8)
    return LabelledVolume(np.broadcast_to(image, labels.shape).copy(), labels, NM)


def trainer(volume: LabelledVolume, steps: int, *, defects: bool = True, **given: object) -> Trainer:
    options = {"warmup_steps": 4, "validate_every": 1000, **given}
    augmentation = AugmentationOptions(misalignment_voxels=2) if defects else AugmentationOptions.none()
    sampler = PatchSampler((volume,), OFFSETS, (16, 16, 16), augmentation, 1, 0.2, 1.0, seed=11)
    return Trainer(NETWORK, sampler, LoopOptions(steps=steps, **options))  # type: ignore[arg-type]


def state(made: Trainer) -> list[bytes]:
    networks = (made.network, made.averaged)
    return [value.numpy().tobytes() for network in networks for value in network.state_dict().values()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("schedule", ["cooldown", "cosine"])
def test_a_resumed_run_ends_with_the_same_bytes(
    volume: LabelledVolume, tmp_path: Path, precision: str, schedule: str
) -> None:
    threads = torch.get_num_threads()
    options = {"precision": precision, "schedule": schedule, "maximin_weight": 0.5, "frozen_fraction": 0.4}
    straight = trainer(volume, 6, **options)
    list(straight.run())
    first = trainer(volume, 6, **options)
    for progress in first.run():
        if progress.step == 3:
            first.save(tmp_path / "last.pt", NM, {"recipe": "test"})
            break
    second = trainer(volume, 6, **options)
    assert second.resume(tmp_path / "last.pt") == {"recipe": "test"}
    assert [progress.step for progress in second.run()] == [4, 5, 6]
    assert state(second) == state(straight)
    assert torch.get_num_threads() == threads


def test_a_changed_weight_decay_holds_from_the_step_reached(volume: LabelledVolume, tmp_path: Path) -> None:
    trainer(volume, 2, weight_decay=0.01).save(tmp_path / "last.pt", NM, {})
    second = trainer(volume, 2, weight_decay=0.5)
    second.resume(tmp_path / "last.pt")
    assert [group["weight_decay"] for group in second.optimizer.param_groups] == [0.5]


def test_it_learns(volume: LabelledVolume) -> None:
    made = trainer(volume, 200, defects=False, learning_rate=5e-3, average_decay=0.9)
    before = made.validate((volume,))["loss"]
    losses = [progress.primary_loss for progress in made.run()]
    assert np.median(losses[-10:]) < 0.7 * np.median(losses[:10])
    after = made.validate((volume,))
    assert after["loss"] < 0.7 * before
    assert after["balanced_error"] < 0.3


def test_the_rate_warms_up_stays_and_cools_down() -> None:
    options = LoopOptions(steps=100, learning_rate=1.0, warmup_steps=10, cooldown_fraction=0.3, frozen_fraction=0.2)
    rates = [options.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:70] == [1.0] * 60
    assert rates[99] == pytest.approx(1 / 30)
    assert [options.frozen(step) for step in (79, 80)] == [False, True]


def test_the_cosine_falls_from_the_rate_to_nothing() -> None:
    options = LoopOptions(steps=100, learning_rate=1.0, warmup_steps=1, schedule="cosine")
    rates = [options.learning_rate_at(step) for step in range(101)]
    assert (rates[0], rates[50], rates[100]) == pytest.approx((1, 0.5, 0))
    assert all(a > b for a, b in pairwise(rates))


def test_a_run_stops_when_the_segmentation_gets_no_better_and_resumes_with_its_patience(
    volume: LabelledVolume, tmp_path: Path
) -> None:
    options = {"patience": 2, "validate_every": 1, "learning_rate": 0.0, "weight_decay": 0.0, "average_decay": 0.0}
    options |= {"frozen_fraction": 1.0}
    made = trainer(volume, 9, **options)
    seen = list(made.run((volume,)))
    assert [progress.step for progress in seen] == [1, 2, 3]  # nothing is learnt: only the first is an improvement
    assert [progress.improved for progress in seen] == [True, False, False]
    first = trainer(volume, 9, **options)
    for progress in first.run((volume,)):
        if progress.step == 2:
            first.save(tmp_path / "last.pt", NM, {})
            break
    second = trainer(volume, 9, **options)
    second.resume(tmp_path / "last.pt")
    assert [progress.step for progress in second.run((volume,))] == [3]
    assert second.stopped_early


def test_the_rate_falls_where_the_segmentation_gets_no_better_and_resumes_with_the_same_bytes(
    volume: LabelledVolume, tmp_path: Path
) -> None:
    options = {"schedule": "plateau", "plateau_patience": 2, "plateau_factor": 0.25, "learning_rate": 1e-12}
    options |= {"validate_every": 1, "warmup_steps": 1, "frozen_fraction": 1.0, "weight_decay": 0.0}
    straight = trainer(volume, 6, **options)
    rates = [progress.learning_rate for progress in straight.run((volume,))]
    # nothing is learnt: the first validation is the best, the third and the fifth are two more without gain
    assert rates == pytest.approx([1e-12, 1e-12, 1e-12, 2.5e-13, 2.5e-13, 6.25e-14], rel=1e-9)
    options["learning_rate"] = 1e-2
    whole = trainer(volume, 6, **options)
    whole_rates = [progress.learning_rate for progress in whole.run((volume,))]
    for stop in (2, 4):
        first = trainer(volume, 6, **options)
        for progress in first.run((volume,)):
            if progress.step == stop:
                first.save(tmp_path / "last.pt", NM, {})
                break
        second = trainer(volume, 6, **options)
        second.resume(tmp_path / "last.pt")
        assert [progress.learning_rate for progress in second.run((volume,))] == whole_rates[stop:]
        assert state(second) == state(whole)


def test_a_plateau_needs_validation_and_sound_options(volume: LabelledVolume) -> None:
    with pytest.raises(InvalidConfig, match="validation"):
        next(trainer(volume, 2, schedule="plateau").run())
    for wrong in ({"plateau_patience": 0}, {"plateau_factor": 1.0}, {"schedule": "steps"}):
        with pytest.raises(InvalidConfig, match="training"):
            LoopOptions(steps=1, **wrong)  # type: ignore[arg-type]


def test_maximin_loss_changes_what_is_learnt(volume: LabelledVolume) -> None:
    states = []
    for weight in (0.0, 1.0):
        made = trainer(volume, 2, maximin_weight=weight)
        list(made.run())
        states.append(state(made))
    assert states[0] != states[1]


def test_a_run_can_begin_with_the_weights_of_another(volume: LabelledVolume, tmp_path: Path) -> None:
    first = trainer(volume, 3)
    list(first.run())
    first.save(tmp_path / "first.pt", NM, {})
    second = trainer(volume, 3)
    second.initialise(tmp_path / "first.pt")
    assert second.step == 0
    assert state(second)[: len(state(second)) // 2] == state(second)[len(state(second)) // 2 :]
    assert state(second)[-1] == state(first)[-1]
    other = PatchSampler((volume,), OFFSETS, (16, 16, 16), AugmentationOptions.none(), 1, 0.0, 1.0, seed=1)
    with pytest.raises(InvalidModel, match="not the configured one"):
        Trainer(RSUNetConfig.isotropic(4, (4, 8)), other, LoopOptions(steps=1)).initialise(tmp_path / "first.pt")


def test_patches_are_the_same_for_the_same_step(volume: LabelledVolume) -> None:
    sampler = trainer(volume, 1).sampler
    for a, b in ((sampler.batch(4, 2), sampler.batch(4, 2)),):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.targets, b.targets)
    assert not np.array_equal(sampler.batch(4, 2).image, sampler.batch(5, 2).image)


def test_wrong_inputs_are_refused(volume: LabelledVolume, tmp_path: Path) -> None:
    sampler = trainer(volume, 1).sampler
    with pytest.raises(InvalidConfig, match="channel"):
        Trainer(RSUNetConfig.isotropic(3, (4, 6)), sampler, LoopOptions(steps=1))
    with pytest.raises(InvalidConfig, match="patch"):
        PatchSampler((volume,), OFFSETS, (16, 16, 24), AugmentationOptions(), 0, 0.0, 0.5, 1)
    with pytest.raises(InvalidVolume, match="at least"):
        PatchSampler((volume,), OFFSETS, (64, 64, 64), AugmentationOptions(), 0, 0.0, 0.5, 1)
    with pytest.raises(InvalidVolume, match="uint8"):
        LabelledVolume(volume.image.astype(np.float32), volume.labels, NM)  # type: ignore[arg-type]
    garbage = tmp_path / "garbage.pt"
    garbage.write_bytes(b"not a checkpoint")
    for path in (garbage, tmp_path / "missing.pt"):
        with pytest.raises(InvalidModel, match="checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize("config", [RSUNetConfig.isotropic(3, (4, 6, 8)), RSUNetConfig.anisotropic(3, (4, 6, 8))])
def test_networks_keep_the_extent_of_divisible_patches(config: RSUNetConfig) -> None:
    z, y, x = (2 * d for d in config.divisor)
    assert RSUNet(config).eval()(torch.zeros(1, 1, z, y, x)).shape == (1, 3, z, y, x)


def test_a_planar_network_sees_each_section_alone() -> None:
    network = RSUNet(RSUNetConfig.planar(3, (4, 6))).eval()
    image = torch.rand(1, 1, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = network(image[:, :, 2:3])
    assert torch.equal(network(image)[:, :, 2:3], alone)
    assert not torch.equal(RSUNet(RSUNetConfig.anisotropic(3, (4, 6))).eval()(image)[:, :, 2:3], alone)


@pytest.mark.parametrize("wrong", [{"widths": ()}, {"pooling": ()}, {"first_kernel": (2, 3, 3)}])
def test_impossible_networks_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidConfig, match="network"):
        RSUNetConfig(3, **wrong)  # type: ignore[arg-type]
