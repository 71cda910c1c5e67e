"""Short forms of the two storms, in processes of their own: they fork, which no process may do whose threads
have computed."""
from conftest import command


def test_a_run_that_is_killed_at_random_moments_ends_bit_for_bit():
    """Weights, evaluation, pictures and log of a run that was killed a few times are those of one that was
    not; nothing half-written is left."""
    done = command("tests/storm_kills.py", "--storms", 1, "--kills", 3, "--seed", 1)
    assert done.returncode == 0 and "1 of 1 runs bit for bit after 3 kills" in done.stdout, done.stdout


def test_hostile_inputs_end_in_one_line():
    """No traceback, no hang, nothing written outside, nothing lost, whatever a file of a run, a pipeline or a
    table holds."""
    done = command("tests/storm_inputs.py", "--inputs", 8)
    assert done.returncode == 0, done.stdout + done.stderr
