# Made from specgen's own options by: specgen --show-completion bash
_specgen_words() { COMPREPLY=($(compgen -W "$1" -- "$cur")); }
_specgen_names() { command "$specgen" --list "$1" 2>/dev/null; }
_specgen_files() {
  local IFS=$'\n'
  # A hub id has a slash and is no path: it is shown as it is.
  if [[ ${#COMPREPLY[@]} == 0 ]] && type compopt &>/dev/null; then compopt -o filenames; fi
  COMPREPLY+=($(compgen -f -- "$cur"))
}
_specgen() {
  local specgen=$1 cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= word
  COMPREPLY=()
  # --option=value comes as three words.
  if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case $word in generate|chat|verify|bench|distill|doctor) command=$word; break ;; esac
  done
  case $command:$prev in
    generate:--prompt|generate:-p|generate:--system|generate:-s|generate:--chat-template-kwargs|generate:--revision|generate:--draft-revision|generate:--gpu-layers|generate:--context-size|generate:--threads|generate:--max-new-tokens|generate:--max-tokens|generate:-n|generate:--temperature|generate:--temp|generate:--top-k|generate:--top-p|generate:--min-p|generate:--repetition-penalty|generate:--seed|generate:--stop) return ;;
    generate:--file|generate:-f|generate:--system-file|generate:--lookup-file|generate:--output|generate:-o) _specgen_files; return ;;
    generate:--target|generate:-t|generate:--model|generate:-m) _specgen_words "$(_specgen_names models)"; _specgen_files; return ;;
    generate:--color|generate:--sanitize) _specgen_words "auto always never"; return ;;
    generate:--dtype) _specgen_words "auto bfloat16 float16 float32"; return ;;
    generate:--device|generate:--draft-device) _specgen_words "auto cpu cuda mps"; return ;;
    generate:--view) _specgen_words "auto inline live text steps off"; return ;;
    generate:--draft|generate:-d) _specgen_words "auto lookup none $(_specgen_names models)"; _specgen_files; return ;;
    generate:--quant|generate:-Q|generate:--draft-quant) _specgen_words "auto none int8 nf4 fp4"; return ;;
    generate:--chat-template) _specgen_words "auto none"; _specgen_files; return ;;
    generate:--format) _specgen_words "auto text json ndjson"; return ;;
    generate:--backend) _specgen_words "auto transformers llama.cpp"; return ;;
    generate:--draft-tokens|generate:--num-draft-tokens|generate:-k) _specgen_words "auto"; return ;;
    generate:--baseline) _specgen_words "calibrate full off"; return ;;
    chat:--system|chat:-s|chat:--chat-template-kwargs|chat:--revision|chat:--draft-revision|chat:--gpu-layers|chat:--context-size|chat:--threads|chat:--max-new-tokens|chat:--max-tokens|chat:-n|chat:--temperature|chat:--temp|chat:--top-k|chat:--top-p|chat:--min-p|chat:--repetition-penalty|chat:--seed|chat:--stop) return ;;
    chat:--system-file|chat:--lookup-file) _specgen_files; return ;;
    chat:--target|chat:-t|chat:--model|chat:-m) _specgen_words "$(_specgen_names models)"; _specgen_files; return ;;
    chat:--color|chat:--sanitize) _specgen_words "auto always never"; return ;;
    chat:--dtype) _specgen_words "auto bfloat16 float16 float32"; return ;;
    chat:--device|chat:--draft-device) _specgen_words "auto cpu cuda mps"; return ;;
    chat:--view) _specgen_words "auto inline live text steps off"; return ;;
    chat:--draft|chat:-d) _specgen_words "auto lookup none $(_specgen_names models)"; _specgen_files; return ;;
    chat:--quant|chat:-Q|chat:--draft-quant) _specgen_words "auto none int8 nf4 fp4"; return ;;
    chat:--backend) _specgen_words "auto transformers llama.cpp"; return ;;
    chat:--draft-tokens|chat:--num-draft-tokens|chat:-k) _specgen_words "auto"; return ;;
    chat:--chat-template) _specgen_words "auto"; _specgen_files; return ;;
    chat:--resume) _specgen_words "last $(_specgen_names sessions)"; _specgen_files; return ;;
    verify:--prompt|verify:-p|verify:--revision|verify:--draft-revision|verify:--gpu-layers|verify:--context-size|verify:--threads|verify:--max-new-tokens|verify:-n) return ;;
    verify:--target|verify:-t|verify:--model|verify:-m) _specgen_words "$(_specgen_names models)"; _specgen_files; return ;;
    verify:--color) _specgen_words "auto always never"; return ;;
    verify:--dtype) _specgen_words "auto bfloat16 float16 float32"; return ;;
    verify:--device|verify:--draft-device) _specgen_words "auto cpu cuda mps"; return ;;
    verify:--draft|verify:-d) _specgen_words "auto lookup none $(_specgen_names models)"; _specgen_files; return ;;
    verify:--quant|verify:-Q|verify:--draft-quant) _specgen_words "auto none int8 nf4 fp4"; return ;;
    verify:--backend) _specgen_words "auto transformers llama.cpp"; return ;;
    verify:--draft-tokens|verify:--num-draft-tokens|verify:-k) _specgen_words "auto"; return ;;
    bench:--draft-tokens|bench:--num-draft-tokens|bench:-k|bench:--revision|bench:--draft-revision|bench:--gpu-layers|bench:--context-size|bench:--threads|bench:--max-new-tokens|bench:--max-tokens|bench:-n|bench:--repeats|bench:-r|bench:--warmup|bench:-w|bench:--num-prompts|bench:--temperature|bench:--temp|bench:--seed|bench:--fail-under-speedup|bench:--fail-under-tar) return ;;
    bench:--lookup-file|bench:--prompts|bench:--export-json|bench:--export-csv|bench:--export-md|bench:--export-markdown|bench:--plot) _specgen_files; return ;;
    bench:--target|bench:-t|bench:--model|bench:-m) _specgen_words "$(_specgen_names models)"; _specgen_files; return ;;
    bench:--color) _specgen_words "auto always never"; return ;;
    bench:--dtype) _specgen_words "auto bfloat16 float16 float32"; return ;;
    bench:--device|bench:--draft-device) _specgen_words "auto cpu cuda mps"; return ;;
    bench:--draft|bench:-d) _specgen_words "auto lookup $(_specgen_names models)"; _specgen_files; return ;;
    bench:--quant|bench:-Q|bench:--draft-quant) _specgen_words "auto none int8 nf4 fp4"; return ;;
    bench:--chat-template) _specgen_words "auto none"; _specgen_files; return ;;
    bench:--format) _specgen_words "auto table json ndjson csv md"; return ;;
    bench:--backend) _specgen_words "auto transformers llama.cpp both"; return ;;
    distill:--num-layers|distill:--layers|distill:--vocab|distill:--num-prompts|distill:--max-new-tokens|distill:-n|distill:--greedy-share|distill:--batch-size|distill:--epochs|distill:--learning-rate|distill:--batch-tokens|distill:--unroll|distill:--seed|distill:--revision) return ;;
    distill:--output|distill:-o|distill:--prompts|distill:--held-out|distill:--texts) _specgen_files; return ;;
    distill:--color) _specgen_words "auto always never"; return ;;
    distill:--device) _specgen_words "auto cpu cuda mps"; return ;;
    distill:--kind) _specgen_words "features layers"; return ;;
    doctor:--revision|doctor:--draft-revision|doctor:--gpu-layers|doctor:--context-size|doctor:--threads|doctor:--context|doctor:--alpha) return ;;
    doctor:--target|doctor:-t|doctor:--model|doctor:-m) _specgen_words "$(_specgen_names models)"; _specgen_files; return ;;
    doctor:--dtype) _specgen_words "auto bfloat16 float16 float32"; return ;;
    doctor:--device|doctor:--draft-device) _specgen_words "auto cpu cuda mps"; return ;;
    doctor:--draft|doctor:-d) _specgen_words "auto lookup none $(_specgen_names models)"; _specgen_files; return ;;
    doctor:--quant|doctor:-Q|doctor:--draft-quant) _specgen_words "auto none int8 nf4 fp4"; return ;;
    doctor:--backend) _specgen_words "auto transformers llama.cpp"; return ;;
    :--show-completion) _specgen_words "bash zsh fish powershell"; return ;;
    :--list) _specgen_words "models sessions"; return ;;
  esac
  if [[ $cur == -* ]]; then
    case $command in
    generate) _specgen_words "--prompt -p --file -f --stdin --no-stdin --system -s --system-file --chat-template --chat-template-kwargs --target -t --model -m --draft -d --quant -Q --draft-quant --dtype --device --draft-device --revision --draft-revision --offline --backend --gpu-layers --context-size --threads --draft-tokens --num-draft-tokens -k --lookup-file --baseline --strict --max-new-tokens --max-tokens -n --temperature --temp --top-k --top-p --min-p --repetition-penalty --seed --same-text --no-same-text --stop --ignore-eos --view --color --sanitize --format --json --output -o --stats --no-stats --quiet -q --verbose -v --help -h" ;;
    chat) _specgen_words "--resume --save --no-save --history --no-history --system -s --system-file --chat-template --chat-template-kwargs --target -t --model -m --draft -d --quant -Q --draft-quant --dtype --device --draft-device --revision --draft-revision --offline --backend --gpu-layers --context-size --threads --draft-tokens --num-draft-tokens -k --lookup-file --calibrate --no-calibrate --strict --max-new-tokens --max-tokens -n --temperature --temp --top-k --top-p --min-p --repetition-penalty --seed --same-text --no-same-text --stop --view --color --sanitize --stats --no-stats --quiet -q --verbose -v --help -h" ;;
    verify) _specgen_words "--prompt -p --target -t --model -m --draft -d --quant -Q --draft-quant --dtype --device --draft-device --revision --draft-revision --offline --backend --gpu-layers --context-size --threads --draft-tokens --num-draft-tokens -k --max-new-tokens -n --json --color --quiet -q --verbose -v --help -h" ;;
    bench) _specgen_words "--draft -d --draft-tokens --num-draft-tokens -k --lookup-file --target -t --model -m --quant -Q --draft-quant --dtype --device --draft-device --revision --draft-revision --offline --backend --gpu-layers --context-size --threads --max-new-tokens --max-tokens -n --repeats -r --warmup -w --prompts --num-prompts --temperature --temp --seed --ignore-eos --stop-at-eos --chat-template --quick --check --fail-under-speedup --fail-under-tar --format --export-json --export-csv --export-md --export-markdown --plot --by-category --chart --no-chart --color --quiet -q --verbose -v --help -h" ;;
    distill) _specgen_words "--output -o --kind --num-layers --layers --vocab --prompts --held-out --num-prompts --max-new-tokens -n --texts --greedy-share --batch-size --epochs --learning-rate --batch-tokens --unroll --seed --device --revision --offline --color --quiet -q --verbose -v --help -h" ;;
    doctor) _specgen_words "--target -t --model -m --draft -d --quant -Q --draft-quant --dtype --device --draft-device --revision --draft-revision --offline --backend --gpu-layers --context-size --threads --context --measure --alpha --json --quiet -q --verbose -v --help -h" ;;
    '') _specgen_words "--version -V --show-completion --list --help -h" ;;
    esac
  elif [[ -z $command ]]; then _specgen_words "generate chat verify bench distill doctor"
  else
    case $command in
    distill) _specgen_words "$(_specgen_names models)"; _specgen_files; ;;
    esac
  fi
}
complete -F _specgen specgen
