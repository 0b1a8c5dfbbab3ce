"""The one training loop: batches, optimizer, schedule, resume and a `loss` slot. It knows no method by name."""
