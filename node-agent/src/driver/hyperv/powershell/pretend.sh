#!/bin/sh
# Stands in for PowerShell in tests of the process around it: does what the file "behaviour" beside the host script says,
# with a request's number in $n and its text in $line.
for last; do :; done
dir=$(dirname "$last")
echo started >>"$dir/starts"
n=0
hello='{"protocol":1,"powershell":"5.1","edition":"Desktop","computer":"N","culture":"","modules":{},"missing":[],"absent":[]}'
answer() { echo "{\"id\":$n,\"ok\":true,\"result\":$1}"; }
while read -r line; do
  n=$((n + 1))
  . "$dir/behaviour"
  case "$line" in
  *'"op":"hello"'*) answer "$hello" ;;
  *) other ;;
  esac
done
