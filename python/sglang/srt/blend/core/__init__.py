"""The scheduling algorithm, free of torch and SGLang: arrays in, admission order out."""
