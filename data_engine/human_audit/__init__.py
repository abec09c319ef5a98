"""The human audit: people judge a random sample of masks, and the sample says how good the whole run is.

SA-1B's quality was claimed like this (Kirillov et al. 2023, section 5: 500 images). `draw.py` draws the sample,
`answers.py` keeps the verdicts, `estimators.py` knows the statistics, `report.py` puts them together. It has nothing to
do with `dataset/audit.py`, which proves that the files are whole.
"""
