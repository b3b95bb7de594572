"""What a batch reads: names on the command line in, lines out. `run`, `plan` and `validate` share it.

* `source`: names become files, remote ones and standard input; compression and other encodings are undone.
* `remote`: addresses that fsspec reads.
* `tables`: Parquet, Arrow and CSV, a few rows at a time; `rows`: a row becomes the line of a request.
* `lines`: a stream of bytes becomes lines; nothing else splits.
* `seen`: which of any number of lines have been there before.
"""
