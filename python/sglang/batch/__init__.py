"""`sglang-batch`: batch files in, answers or a plan out.

* `cli`: the command line. Its commands:
  * `run/`: answers a file, with SGLang in this process.
  * `validate`: checks a file.
  * `plan/`: tells what a file would take on a GPU, without one.
  * `calibrate/`: measures a hardware profile of this CPU.
* `input/`: files and standard input become lines, for all commands.
* `records`: lines of the OpenAI Batch format; `reply_usage`: the tokens that a reply tells.
* `endpoints`: the URLs that a line may name; `request_handlers`: SGLang's own handlers of their requests.
* `upstream`: what we read of SGLang; `server_flags`: its server's flags, which `run` and `plan` take too.
* `usage`: checks of a command line; `progress`: the progress bar; `smollm2`: the embedded model.
"""
