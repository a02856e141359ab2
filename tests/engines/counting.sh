#!/bin/sh
# A dose engine that notes that it runs, as long as it is told, and then becomes the real one.
#   counting.sh NOTES COMMAND [ARG...]
# NOTES/runs gets a line for each start: the job's folder. NOTES/hold keeps engines from going on while it
# exists; NOTES/fail-<pattern in the job's name> makes an engine fail; NOTES/zeros
# (taken by the next engine) makes it leave a dose of zeros and say that all went well.
notes=$1
shift
job=$(basename "$PWD")
echo "$job" >>"$notes/runs"
while [ -e "$notes/hold" ]; do sleep 0.1; done
for order in "$notes"/fail-*; do
  case $job in *"${order##*/fail-}"*)
    echo "told to fail" >&2
    exit 3
    ;;
  esac
done
if [ -e "$notes/zeros" ]; then # run the real one, then leave a dose of the right size that is all zero
  rm "$notes/zeros"
  "$@" || exit
  for dose in output/*; do
    size=$(stat -c %s "$dose")
    rm "$dose" && truncate -s "$size" "$dose"
  done
  exit 0
fi
exec "$@"
