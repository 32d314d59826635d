#!/bin/bash
# Runs fuzz targets one after the other: run.sh SECONDS [TARGET...], all of them if none is named.
# What one finds stands in artifacts/TARGET; the script goes on with the next and fails in the end.
set -u
cd "$(dirname "$0")/.." || exit 1
seconds=${1:?seconds for each target}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo +nightly fuzz list)
cargo +nightly fuzz build || exit 1
failed=()
for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target"
    corpora=("fuzz/corpus/$target")
    [ -d "fuzz/seeds/$target" ] && corpora+=("fuzz/seeds/$target")
    options=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1)
    [ -f "fuzz/dictionaries/$target.dict" ] && options+=(-dict="fuzz/dictionaries/$target.dict")
    nice cargo +nightly fuzz run "$target" "${corpora[@]}" -- "${options[@]}" || failed+=("$target")
done
echo "failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
