"""`sglang-batch doctor`: whether this installation and this machine can run a batch, and what to do if not.

* `finding`: one line of what was found.
* `software`: versions, hooks on SGLang.
* `device`: platform, hardware profile, CPU kernels.
* `machine`: cores, limits, space, caches.
* `command`: all of them, as text or JSON.
"""
