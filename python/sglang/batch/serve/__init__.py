"""`sglang-batch serve`: the Files and Batches API of OpenAI on one's own engine.

`command` starts it; `api` has the routes, `upload`, `objects`, `bodies` and `errors` what goes in and out of
them, `keys` and `caller` who may call; `online_routes` and `online` pass requests of online users through.
`store` keeps files and batches. `batches` carries each batch out, as a job of `sglang.batch.run`, on the one
engine of `shared_engine`; `content` decides whether a file's lines make a batch. `tracing` makes spans.
"""
