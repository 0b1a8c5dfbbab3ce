"""Making models smaller: calibrate, score, allocate, apply, recover, store."""
