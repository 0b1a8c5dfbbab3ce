"""What parallel decoding costs: tasks whose answers depend on each other little, or much."""

SUITE = "parallel"
ROW = 7  # of the benchmark that this follows
