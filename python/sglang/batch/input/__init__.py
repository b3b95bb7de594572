"""What a batch reads: names on the command line in, lines out. `run`, `plan` and `validate` share it.

* `source`: names become files and standard input; compression and other encodings are undone.
* `lines`: a stream of bytes becomes lines; nothing else splits.
"""
