"""Short forms of the two storms; the long ones are scripts (storm_kills.py, storm_inputs.py)."""
from storm_inputs import inputs
from storm_kills import differences, storm


def test_a_run_that_is_killed_at_random_moments_ends_bit_for_bit(smoke_run, tmp_path):
    """Weights, evaluation, pictures and log of a run that was killed a few times are those of one that was
    not; nothing half-written is left."""
    assert storm(tmp_path / "run", seed=1, kills=3) > 0
    assert differences(tmp_path / "run", smoke_run) == []


def test_hostile_inputs_end_in_one_line(smoke_run, tmp_path):
    """No traceback, no hang, nothing written outside, nothing lost, whatever a file of a run, a pipeline or a
    table holds."""
    assert inputs(smoke_run, tmp_path, 8, seed=0) == []
