# Made from specgen's own options by: specgen --show-completion bash
_specgen_words() { COMPREPLY=($(compgen -W "$1" -- "$cur")); }
_specgen_names() { command "$specgen" --list "$1" 2>/dev/null; }
_specgen_files() {
  local IFS=$'\n'
  # A hub id has a slash but is not a path: it is shown as it is.
  if [[ ${#COMPREPLY[@]} == 0 ]] && type compopt &>/dev/null; then compopt -o filenames; fi
  COMPREPLY+=($(compgen -f -- "$cur"))
}
_specgen() {
  local specgen=$1 cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= word
  COMPREPLY=()
  # --option=value comes as three words.
  if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case $word in generate|chat|verify|bench|distill|doctor|drafts|batch|export) command=$word; break ;; esac
  done
  case $command:$prev in
    generate:-p|generate:--prompt|generate:-s|generate:--system|generate:--chat-template-kwargs|generate:--server|generate:--baseline-server|generate:--timeout|generate:--revision|generate:--draft-revision|generate:--gpu-layers|generate:--context-size|generate:--threads|generate:-n|generate:--max-new-tokens|generate:--max-tokens|generate:--stop|generate:--temperature|generate:--temp|generate:--top-k|generate:--top-p|generate:--min-p|generate:--repetition-penalty|generate:--seed) return ;;
    generate:-f|generate:--file|generate:--system-file|generate:--lookup-file|generate:-o|generate:--output) _specgen_files; return ;;
    generate:-t|generate:-m|generate:--target|generate:--model) _specgen_words "$(_specgen_names models)"; _specgen_files; return ;;
    generate:--api-key-env) _specgen_words "$(_specgen_names sessions)"; return ;;
    generate:--color|generate:--sanitize) _specgen_words "auto always never"; return ;;
    generate:--dtype) _specgen_words "auto bfloat16 float16 float32"; return ;;
    generate:--device|generate:--draft-device) _specgen_words "auto cpu cuda mps"; return ;;
    generate:--view) _specgen_words "auto inline live text steps off"; return ;;
    generate:-d|generate:--draft) _specgen_words "auto lookup mtp none $(_specgen_names models)"; _specgen_files; return ;;
    generate:-Q|generate:--quant|generate:--draft-quant) _specgen_words "auto none int8 nf4 fp4"; return ;;
    generate:--chat-template) _specgen_words "auto none"; _specgen_files; return ;;
    generate:--tree) _specgen_words "auto off"; return ;;
    generate:--draft-vocab) _specgen_words "auto same shared text"; return ;;
    generate:--format) _specgen_words "auto text json ndjson"; return ;;
    generate:--backend) _specgen_words "auto torch transformers llama.cpp"; return ;;
    generate:-k|generate:--draft-tokens|generate:--num-draft-tokens) _specgen_words "auto"; return ;;
    generate:--baseline) _specgen_words "calibrate full off"; return ;;
    chat:--server|chat:--baseline-server|chat:--timeout|chat:-s|chat:--system|chat:--chat-template-kwargs|chat:--revision|chat:--draft-revision|chat:--gpu-layers|chat:--context-size|chat:--threads|chat:-n|chat:--max-new-tokens|chat:--max-tokens|chat:--stop|chat:--temperature|chat:--temp|chat:--top-k|chat:--top-p|chat:--min-p|chat:--repetition-penalty|chat:--seed) return ;;
    chat:--system-file|chat:--lookup-file) _specgen_files; return ;;
    chat:-t|chat:-m|chat:--target|chat:--model) _specgen_words "$(_specgen_names models)"; _specgen_files; return ;;
    chat:--api-key-env) _specgen_words "$(_specgen_names sessions)"; return ;;
    chat:--color|chat:--sanitize) _specgen_words "auto always never"; return ;;
    chat:--dtype) _specgen_words "auto bfloat16 float16 float32"; return ;;
    chat:--device|chat:--draft-device) _specgen_words "auto cpu cuda mps"; return ;;
    chat:--view) _specgen_words "auto inline live text steps off"; return ;;
    chat:-d|chat:--draft) _specgen_words "auto lookup mtp none $(_specgen_names models)"; _specgen_files; return ;;
    chat:-Q|chat:--quant|chat:--draft-quant) _specgen_words "auto none int8 nf4 fp4"; return ;;
    chat:--tree) _specgen_words "auto off"; return ;;
    chat:--draft-vocab) _specgen_words "auto same shared text"; return ;;
    chat:--backend) _specgen_words "auto torch transformers llama.cpp"; return ;;
    chat:-k|chat:--draft-tokens|chat:--num-draft-tokens) _specgen_words "auto"; return ;;
    chat:--chat-template) _specgen_words "auto"; _specgen_files; return ;;
    chat:--resume) _specgen_words "last $(_specgen_names sessions)"; _specgen_files; return ;;
    verify:-p|verify:--prompt|verify:--chat-template-kwargs|verify:--revision|verify:--draft-revision|verify:--gpu-layers|verify:--context-size|verify:--threads|verify:-n|verify:--max-new-tokens) return ;;
    verify:-t|verify:-m|verify:--target|verify:--model) _specgen_words "$(_specgen_names models)"; _specgen_files; return ;;
    verify:--color) _specgen_words "auto always never"; return ;;
    verify:--dtype) _specgen_words "auto bfloat16 float16 float32"; return ;;
    verify:--device|verify:--draft-device) _specgen_words "auto cpu cuda mps"; return ;;
    verify:-d|verify:--draft) _specgen_words "auto lookup mtp none $(_specgen_names models)"; _specgen_files; return ;;
    verify:-Q|verify:--quant|verify:--draft-quant) _specgen_words "auto none int8 nf4 fp4"; return ;;
    verify:--tree) _specgen_words "auto off"; return ;;
    verify:--draft-vocab) _specgen_words "auto same shared text"; return ;;
    verify:--backend) _specgen_words "auto torch transformers llama.cpp"; return ;;
    verify:-k|verify:--draft-tokens|verify:--num-draft-tokens) _specgen_words "auto"; return ;;
    verify:--against) _specgen_words "none transformers"; return ;;
    bench:--server|bench:--baseline-server|bench:--concurrency|bench:--timeout|bench:-k|bench:--draft-tokens|bench:--num-draft-tokens|bench:--tree|bench:--revision|bench:--draft-revision|bench:--gpu-layers|bench:--context-size|bench:--threads|bench:-n|bench:--max-new-tokens|bench:--max-tokens|bench:-r|bench:--repeats|bench:-w|bench:--warmup|bench:--num-prompts|bench:--temperature|bench:--temp|bench:--top-k|bench:--top-p|bench:--min-p|bench:--seed|bench:--chat-template-kwargs|bench:--fail-under-speedup|bench:--fail-under-tar) return ;;
    bench:--lookup-file|bench:--prompts|bench:--export-json|bench:--export-csv|bench:--export-md|bench:--export-markdown|bench:--plot) _specgen_files; return ;;
    bench:-t|bench:-m|bench:--target|bench:--model) _specgen_words "$(_specgen_names models)"; _specgen_files; return ;;
    bench:--api-key-env) _specgen_words "$(_specgen_names sessions)"; return ;;
    bench:--color) _specgen_words "auto always never"; return ;;
    bench:--dtype) _specgen_words "auto bfloat16 float16 float32"; return ;;
    bench:--device|bench:--draft-device) _specgen_words "auto cpu cuda mps"; return ;;
    bench:-d|bench:--draft) _specgen_words "auto lookup $(_specgen_names models)"; _specgen_files; return ;;
    bench:-Q|bench:--quant|bench:--draft-quant) _specgen_words "auto none int8 nf4 fp4"; return ;;
    bench:--chat-template) _specgen_words "auto none"; _specgen_files; return ;;
    bench:--draft-vocab) _specgen_words "auto same shared text"; return ;;
    bench:--format) _specgen_words "auto table json ndjson csv md"; return ;;
    bench:--backend) _specgen_words "auto torch transformers llama.cpp both"; return ;;
    bench:--peer) _specgen_words "llama-cpp transformers"; return ;;
    distill:--num-layers|distill:--layers|distill:--vocab|distill:--chat-template-kwargs|distill:--num-prompts|distill:-n|distill:--max-new-tokens|distill:--greedy-share|distill:--batch-size|distill:--epochs|distill:--learning-rate|distill:--batch-tokens|distill:--unroll|distill:--seed|distill:--revision) return ;;
    distill:-o|distill:--output|distill:--prompts|distill:--held-out|distill:--texts) _specgen_files; return ;;
    distill:--color) _specgen_words "auto always never"; return ;;
    distill:--device) _specgen_words "auto cpu cuda mps"; return ;;
    distill:--kind) _specgen_words "features layers"; return ;;
    doctor:--server|doctor:--timeout|doctor:--revision|doctor:--draft-revision|doctor:--gpu-layers|doctor:--context-size|doctor:--threads|doctor:--context|doctor:--alpha) return ;;
    doctor:-t|doctor:-m|doctor:--target|doctor:--model) _specgen_words "$(_specgen_names models)"; _specgen_files; return ;;
    doctor:--api-key-env) _specgen_words "$(_specgen_names sessions)"; return ;;
    doctor:--dtype) _specgen_words "auto bfloat16 float16 float32"; return ;;
    doctor:--device|doctor:--draft-device) _specgen_words "auto cpu cuda mps"; return ;;
    doctor:-d|doctor:--draft) _specgen_words "auto lookup mtp none $(_specgen_names models)"; _specgen_files; return ;;
    doctor:-Q|doctor:--quant|doctor:--draft-quant) _specgen_words "auto none int8 nf4 fp4"; return ;;
    doctor:--draft-vocab) _specgen_words "auto same shared text"; return ;;
    doctor:--backend) _specgen_words "auto torch transformers llama.cpp"; return ;;
    drafts:--revision|drafts:--draft-revision|drafts:--gpu-layers|drafts:--context-size|drafts:--threads) return ;;
    drafts:-d|drafts:--draft) _specgen_words "$(_specgen_names models)"; _specgen_files; return ;;
    drafts:--dtype) _specgen_words "auto bfloat16 float16 float32"; return ;;
    drafts:--device|drafts:--draft-device) _specgen_words "auto cpu cuda mps"; return ;;
    drafts:-Q|drafts:--quant|drafts:--draft-quant) _specgen_words "auto none int8 nf4 fp4"; return ;;
    drafts:--draft-vocab) _specgen_words "auto same shared text"; return ;;
    drafts:--backend) _specgen_words "auto torch transformers llama.cpp"; return ;;
    batch:--revision|batch:--draft-revision|batch:--gpu-layers|batch:--context-size|batch:--threads|batch:--chat-template-kwargs|batch:-n|batch:--max-new-tokens|batch:--max-tokens|batch:--stop|batch:--temperature|batch:--temp|batch:--top-k|batch:--top-p|batch:--min-p|batch:--repetition-penalty|batch:--seed|batch:--server|batch:--concurrency|batch:--timeout) return ;;
    batch:-o|batch:--output|batch:--lookup-file) _specgen_files; return ;;
    batch:-t|batch:-m|batch:--target|batch:--model) _specgen_words "$(_specgen_names models)"; _specgen_files; return ;;
    batch:--api-key-env) _specgen_words "$(_specgen_names sessions)"; return ;;
    batch:--color) _specgen_words "auto always never"; return ;;
    batch:--dtype) _specgen_words "auto bfloat16 float16 float32"; return ;;
    batch:--device|batch:--draft-device) _specgen_words "auto cpu cuda mps"; return ;;
    batch:-d|batch:--draft) _specgen_words "auto lookup mtp none $(_specgen_names models)"; _specgen_files; return ;;
    batch:-Q|batch:--quant|batch:--draft-quant) _specgen_words "auto none int8 nf4 fp4"; return ;;
    batch:--chat-template) _specgen_words "auto none"; _specgen_files; return ;;
    batch:--tree) _specgen_words "auto off"; return ;;
    batch:--draft-vocab) _specgen_words "auto same shared text"; return ;;
    batch:--backend) _specgen_words "auto torch transformers llama.cpp"; return ;;
    batch:-k|batch:--draft-tokens|batch:--num-draft-tokens) _specgen_words "auto"; return ;;
    export:-k|export:--draft-tokens|export:--num-draft-tokens|export:--gpus|export:--nodes|export:--port) return ;;
    export:--from) _specgen_files; return ;;
    export:-t|export:-m|export:--target|export:--model) _specgen_words "$(_specgen_names models)"; _specgen_files; return ;;
    export:--color) _specgen_words "auto always never"; return ;;
    export:-d|export:--draft) _specgen_words "lookup none $(_specgen_names models)"; _specgen_files; return ;;
    :--show-completion) _specgen_words "bash zsh fish"; return ;;
    :--list) _specgen_words "models sessions"; return ;;
  esac
  if [[ $cur == -* ]]; then
    case $command in
    generate) _specgen_words "-p --prompt -f --file --stdin --no-stdin -s --system --system-file --chat-template --chat-template-kwargs --server --baseline-server --api-key-env --insecure-key --timeout -t -m --target --model -d --draft -Q --quant --draft-quant --dtype --device --revision --offline --draft-device --draft-vocab --draft-revision --backend --gpu-layers --context-size --threads -k --draft-tokens --num-draft-tokens --tree --lookup-file --baseline --strict -n --max-new-tokens --max-tokens --stop --ignore-eos --temperature --temp --top-k --top-p --min-p --repetition-penalty --seed --same-text --no-same-text --view --color --sanitize --format --json -o --output --show-special-tokens --stats --no-stats -q --quiet -v --verbose -h --help" ;;
    chat) _specgen_words "--resume --save --no-save --history --no-history --server --baseline-server --api-key-env --insecure-key --timeout -s --system --system-file --chat-template --chat-template-kwargs -t -m --target --model -d --draft -Q --quant --draft-quant --dtype --device --revision --offline --draft-device --draft-vocab --draft-revision --backend --gpu-layers --context-size --threads -k --draft-tokens --num-draft-tokens --tree --lookup-file --calibrate --no-calibrate --strict -n --max-new-tokens --max-tokens --stop --temperature --temp --top-k --top-p --min-p --repetition-penalty --seed --same-text --no-same-text --view --color --sanitize --show-special-tokens --stats --no-stats -q --quiet -v --verbose -h --help" ;;
    verify) _specgen_words "-p --prompt --chat-template-kwargs -t -m --target --model -d --draft -Q --quant --draft-quant --dtype --device --revision --offline --draft-device --draft-vocab --draft-revision --backend --gpu-layers --context-size --threads --against -k --draft-tokens --num-draft-tokens --tree -n --max-new-tokens --json --color -q --quiet -v --verbose -h --help" ;;
    bench) _specgen_words "-t -m --target --model --server --baseline-server --concurrency --api-key-env --insecure-key --timeout -d --draft -k --draft-tokens --num-draft-tokens --tree --lookup-file --peer -Q --quant --draft-quant --dtype --device --revision --offline --draft-device --draft-vocab --draft-revision --backend --gpu-layers --context-size --threads -n --max-new-tokens --max-tokens -r --repeats -w --warmup --prompts --num-prompts --temperature --temp --top-k --top-p --min-p --seed --same-text --ignore-eos --stop-at-eos --chat-template --chat-template-kwargs --quick --check --fail-under-speedup --fail-under-tar --format --export-json --export-csv --export-md --export-markdown --plot --by-category --chart --no-chart --color -q --quiet -v --verbose -h --help" ;;
    distill) _specgen_words "-o --output --kind --num-layers --layers --vocab --prompts --held-out --chat-template-kwargs --num-prompts -n --max-new-tokens --texts --greedy-share --batch-size --epochs --learning-rate --batch-tokens --unroll --seed --device --revision --offline --color -q --quiet -v --verbose -h --help" ;;
    doctor) _specgen_words "-t -m --target --model --server --api-key-env --insecure-key --timeout -d --draft -Q --quant --draft-quant --dtype --device --revision --offline --draft-device --draft-vocab --draft-revision --backend --gpu-layers --context-size --threads --context --measure --alpha --json -q --quiet -v --verbose -h --help" ;;
    drafts) _specgen_words "-d --draft -Q --quant --draft-quant --dtype --device --revision --offline --draft-device --draft-vocab --draft-revision --backend --gpu-layers --context-size --threads --measure --json -q --quiet -v --verbose -h --help" ;;
    batch) _specgen_words "-o --output -t -m --target --model -d --draft -Q --quant --draft-quant --dtype --device --revision --offline --draft-device --draft-vocab --draft-revision --backend --gpu-layers --context-size --threads -k --draft-tokens --num-draft-tokens --tree --lookup-file --chat-template --chat-template-kwargs -n --max-new-tokens --max-tokens --stop --temperature --temp --top-k --top-p --min-p --repetition-penalty --seed --same-text --no-same-text --server --concurrency --api-key-env --insecure-key --timeout --retry-failed --json --color --stats --no-stats -q --quiet -v --verbose -h --help" ;;
    export) _specgen_words "--from -t -m --target --model -d --draft -k --draft-tokens --num-draft-tokens --baseline --gpus --nodes --port --json --color -q --quiet -v --verbose -h --help" ;;
    '') _specgen_words "-V --version --show-completion --list -h --help" ;;
    esac
  elif [[ -z $command ]]; then _specgen_words "generate chat verify bench distill doctor drafts batch export"
  else
    case $command in
    distill) _specgen_words "$(_specgen_names models)"; _specgen_files; ;;
    drafts) _specgen_words "$(_specgen_names models)"; _specgen_files; ;;
    batch) _specgen_files; ;;
    export) _specgen_words "vllm sglang llama-server"; ;;
    esac
  fi
}
complete -F _specgen specgen
