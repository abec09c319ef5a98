"""How good masks are: clicks, boxes and automatic generation measured against ground truth and simple baselines."""
