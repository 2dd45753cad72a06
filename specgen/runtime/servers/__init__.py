"""Speaks to inference servers.

What each engine reports of an answer; `test_reported.py` in `tests/runtime/servers` holds the rows. The columns of
llama-server (b10434 and b11549) and vLLM (0.32.0, started with the flags that `specgen export` prints) were confirmed
by runs on a CPU, with `test_real_engines.py` there; the others are from documentation and handmade payloads.

| figure | llama-server | vLLM | vLLM without the flags | SGLang | LM Studio | others |
|---|---|---|---|---|---|---|
| text as it comes | a token an event | merged for a slow reader | merged | yes | yes | yes |
| tokens of an event | counted | ids | ids | at the end | at the end | at the end |
| accepted tokens marked | yes | no | no | no | no | no |
| TAR | its answer | its answer | `/metrics`, if alone | its answer | its answer | no |
| tokens per drafted round | rounds seen live | its answer | `/metrics`, if alone | its answer | no | no |
| alpha, by position | rounds seen live | its answer | no | its answer | no | no |
| decoding time | its own | its own | ours | ours | ours | ours |
| baseline | second server | second server | second server | second server | itself, without the draft | second server |
| gap where texts differ | two likeliest | two likeliest | two likeliest | two likeliest | no | no |

Texts, not ids, are compared: chat completions of llama-server have none. vLLM sends its own time only with
`--enable-per-request-metrics`, which its baseline therefore needs, too. A server that was started with drafts and found
nothing to propose looks like one without drafts. No engine reports the share of time that drafting takes.
"""

KEY_VARIABLE = "SPECGEN_API_KEY"
"""Environment variable with the key for a server."""
