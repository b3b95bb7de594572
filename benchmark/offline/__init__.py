"""Pieces of `benchmark/offline_throughput.py`: workloads, one worker process per engine, the report.

`pool_file`, `protocol` and `vllm_worker` also run in vLLM's environment, so they import neither SGLang nor
this project's packages.
"""
