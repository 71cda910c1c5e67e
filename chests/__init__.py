"""The data: phantom.py and patients.py make it up; archives.py, images.py and labels.py read real ones."""
