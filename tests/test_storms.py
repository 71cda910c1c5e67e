"""Short forms of the two storms, in processes of their own: they fork, which no process may do whose threads
have computed."""
from conftest import command


def test_a_run_that_is_killed_in_every_stage_and_at_random_moments_ends_bit_for_bit():
    """Weights, evaluation, pictures and log of a run that met SIGKILL as soon as each stage had a checkpoint,
    and three more kills at random moments, are those of one that was not killed; nothing half-written is
    left."""
    done = command("tests/storm_kills.py", "--storms", 1, "--kills", 3, "--checkpoints", "--seed", 1)
    assert done.returncode == 0 and "1 of 1 runs bit for bit" in done.stdout, done.stdout


def test_hostile_inputs_end_in_one_line():
    """No traceback, no hang, nothing written outside, nothing lost, whatever a file of a run, a pipeline or a
    table holds."""
    done = command("tests/storm_inputs.py", "--inputs", 5)
    assert done.returncode == 0, done.stdout + done.stderr
