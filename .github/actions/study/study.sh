#!/usr/bin/env bash
# Runs a spec, compares it with the baseline, and writes what to comment. Needs glitchrun in PATH.
#
#   SPEC               the spec
#   ARGUMENTS          further arguments of `glitchrun apply`, separated by spaces
#   FAIL_ON, TOLERANCE as for `glitchrun compare`
#   KEEP_AS_BASELINE   true: later runs are compared with this one
#
# Writes glitchrun-study/: report.md, apply.json, study.html. Exits as `apply` did if it failed, else as `compare`: 5
# for a regression.
set -euo pipefail

out=glitchrun-study
baseline=mlruns/baseline.txt
mkdir -p "$out"
report=$out/report.md

glitchrun validate "$SPEC" --format github
read -ra arguments <<<"${ARGUMENTS:-}"
code=0
glitchrun apply "$SPEC" --yes --keep-going -o json "${arguments[@]}" >"$out/apply.json" || code=$?

# The key of the study, or of the only run; empty if nothing was executed.
key=$(python - "$out/apply.json" <<'PYTHON'
import json, pathlib, sys

found = json.loads(pathlib.Path(sys.argv[1]).read_text() or "{}")
study = (found.get("matrix") or {}).get("study")
folders = [run["artifacts_dir"] for run in found.get("runs", [])]
print(pathlib.Path(study).name if study else pathlib.Path(folders[0]).parts[-3] if folders else "")
PYTHON
)
if [ -z "$key" ]; then
  echo "glitchrun executed nothing; see the log" >"$report"
  exit "$code"
fi

glitchrun report "$key" --format md >"$report"
glitchrun report "$key" -o "$out/study.html" >/dev/null
echo "report=$report" >>"${GITHUB_OUTPUT:-/dev/null}"

worse=0
if [ -f "$baseline" ]; then
  {
    echo
    echo "## Against the baseline"
    echo
    glitchrun compare "$(cat "$baseline")" "$key" --fail-on "${FAIL_ON:-regression}" \
      --tolerance "${TOLERANCE:-0}" -o md || worse=$?
  } >>"$report"
else
  printf '\nThere is no baseline yet: run this on the default branch first.\n' >>"$report"
fi
# GitHub accepts 65,536 characters; a table that is cut ends with its last whole line.
if [ "$(wc -c <"$report")" -gt 60000 ]; then
  head -c 60000 "$report" | sed '$d' >"$report.cut"
  printf '\n… cut; the artifact has the rest.\n' >>"$report.cut"
  mv "$report.cut" "$report"
fi
cat "$report" >>"${GITHUB_STEP_SUMMARY:-/dev/null}"

if [ "${KEEP_AS_BASELINE:-false}" = true ] && [ "$code" -eq 0 ]; then
  echo "$key" >"$baseline"
fi
[ "$code" -eq 0 ] || exit "$code"
exit "$worse"
