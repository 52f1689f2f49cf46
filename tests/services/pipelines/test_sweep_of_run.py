import numpy as np
import pytest
from pipeline_runs import OPTIONS, request, run_in_process

from models.geometry import Box
from services.evaluate import evaluate_segmentation
from services.sweep import evaluate_sweep


@pytest.mark.parametrize("box", [None, "3:27,2:44,5:37"])
def test_a_run_swept_at_its_own_threshold_scores_as_its_segmentation(image, model, tmp_path, box) -> None:
    out = str(tmp_path / "out")
    run = run_in_process(request(image, out, model, (16, 16, 16), box))
    run.folder.write_json("progress/phases/agglomerate.json", {"key": run.phase_key("agglomerate")})
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 4, (3, 4, 4)), np.ones((10, 11, 10), int))[:, :, :37].astype(np.uint16)
    np.save(tmp_path / "truth.npy", truth)
    own = OPTIONS.agglomeration.threshold
    found = evaluate_sweep(out, f"{tmp_path}/truth.npy", thresholds=[own, 0.9, 0.2])
    scores = evaluate_segmentation(f"{out}/segmentation.zarr", f"{tmp_path}/truth.npy", box=box)
    at = next(point for point in found.points if point.threshold == own)
    assert (at.voi, at.rand) == (scores.voi, scores.rand)
    assert found.box == (Box.parse(box) if box else run.domain)
    segments = [point.segments for point in found.points]
    assert segments[0] > segments[1] > segments[2]
