"""The data: phantom.py and patients.py make it up; archives.py, images.py, reports.py and
labels.py read real ones, drawn.py writes sets of synthetic ones."""
