"""What parallel decoding costs: tasks whose answers depend on each other little, or much."""
