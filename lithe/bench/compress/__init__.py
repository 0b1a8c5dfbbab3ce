"""Ways of compressing a model beside each other: what each loses on held-out documents, at which real bytes.

    lithe bench zoo:tiny --suite compress --ledger docs/ledger-compress.jsonl [--method NAME] [--plan FILE] [--runs N]

What is run stands in a plan, `plan.toml` beside this file unless another is given: a `[[method]]` for each way, which other one
it is judged against, at which ratios, with how many seeds. To have a method measured, add an entry (see `_plan.Entry`). Each
method, ratio, model and seed is one record: the model is compressed, saved, loaded again and scored, so bytes are those of its
files. What the ledger holds is not run again. Models are the plain one and its twin with outlier channels, whose
logits are the same.

`_plan` reads the plan, `_score` reads held-out documents, `_suite` runs what is missing, `_rows` makes figures of records.
"""

DENSE = "dense"  # nothing done: what losses are counted from
SUITE = "compress"
