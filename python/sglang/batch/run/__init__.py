"""`sglang-batch run`.

* `command`: job opened, SGLang up, open lines through, report out, SGLang down; `arguments`: the flags.
* `rounds`: the lives of the engine one after the other; `stops`: signals that end the run.
* `job`: open lines in, records out, while one engine lives; `tally` counts, `give_way` lets others go on.
* Engines: `engine` (SGLang in processes of its own), `remote` (running servers).
* Equal requests: `answer_key` tells them, `twins` gives them one answer.
* On the disk: `journal` (a row per line, in SQLite; `schema`: its tables; `line_state`: what can happen to a
  line), `record_log` (answers and errors), `committer` (records reach both, in groups), `files` (names),
  `lock` (one run), `parquet` (answers as a table).
* From one run to the next: `recovery` opens a job whatever was left behind, `identity` and `scan` notice what
  has changed, `finish` gives final names.
* `lengths`: how long answers will be, by earlier ones.
* `tune`: flags of the server that the user has not set.
* `barrier`: nothing is admitted before the first pool is complete.
* `state_poller`: polls the scheduler's state during the run; `blend_history`: what that says of a run.
* `run_progress`: what is seen of a run meanwhile; `eta`: when it will be done.
* `status`: how far a job is, from its journal.
* `report`, `picture`: what a user reads at the end; `html_report`: the same and more as a page (`charts`, and
  `look_back`: the run with its real lengths).
"""
