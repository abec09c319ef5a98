"""The report: one HTML file, and the same figures as JSON, on what is in a dataset and how it came to be."""
