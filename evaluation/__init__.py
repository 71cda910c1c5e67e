"""How a run is judged: judge.py, the networks that gave no reward; metrics.py, the numbers; results.py, what
is said of them; report.py, report.html."""
