#!/bin/sh
# job.sh - detached jobs: claimed once, found again, for a host that has POSIX sh, Linux's /proc,
# coreutils, util-linux (flock, setsid), awk, grep and sed. Nothing runs on the host between jobs.
#
#   job.sh submit ROOT NAME [-i INPUT_FOLDER -f FILE] [-s SLOT,SLOT... -k gpu|cpu|none] [-t LIMIT_S] -- CMD [ARG...]
#                              start it once; "STARTED status" or, where NAME is there already, "EXISTS status"
#   job.sh status ROOT NAME    one line, see below
#   job.sh list   ROOT [PREFIX]                   "NAME status" of every job whose name starts with PREFIX
#   job.sh follow ROOT NAME OFFSET [MARKER]       the output as it grows, until the job has ended (alias: wait)
#   job.sh tail   ROOT NAME OFFSET [MAX [out|err]]  "SIZE", then bytes from OFFSET; the last -OFFSET if negative
#   job.sh cancel ROOT NAME [GRACE_S]             TERM to everything it started, KILL after the grace
#   job.sh fence  ROOT NAME    make the end of a LOST job final, so that the next attempt may run
#   job.sh ack    ROOT NAME    an ended attempt was judged and reported: a retry makes the next attempt
#   job.sh remove ROOT jobs|input NAME            an ended job's folder; an input folder that no job uses
#   job.sh selftest ROOT       does this host have what is needed? "OK", or what is missing
#
# Status lines (key=value follow the state; times are seconds of the epoch, "-" is unknown):
#   ABSENT                                  no such job
#   CLAIMED                                 submit is at work, or was cut off less than 10 s ago
#   PENDING why=                            waits: starting, slots-busy, gpu-in-use, nvidia-smi-failed
#   RUNNING pid= slot= start=
#   ORPHAN pid= slot= start=                it runs, its supervisor is dead: its exit status will not be known
#   EXITED rc= why= slot= start= end= acked=   why: exit, signal, timeout, cancelled, no-space, fenced[:cause]
#   LOST why= slot= start=                  it does not run, how it ended is not known (reboot, supervisor-died,
#                                           never-started)
#
# Layout; ROOT lies on a LOCAL file system, where flock is the kernel's:
#   ROOT/input/UNIT/     what was uploaded and verified; jobs only read it
#   ROOT/jobs/NAME/      one attempt; made by mkdir, which is the atomic claim; the payload's working directory
#     FILE               INPUT_FOLDER/FILE with @INPUT@ and @OUTPUT@ replaced by absolute folders
#     output/            the payload's results (made before it starts); out, err: its standard streams
#     cmd                argv, shell-quoted, for people
#     lock               held (flock) by the supervisor for its whole life, and by no one else
#     pid                "BOOT_ID PID STARTTIME SLOT" of the supervisor; waiting: what a pending job waits for
#     child              "PID STARTTIME EPOCH" of the payload, which leads a session and group of its own
#     exit.pre, exit     "RC END WHY SLOT START", written by one writer only: whoever holds the lock
#     cancel, timeout, acked   marks
#   ROOT/slots/SLOT.lock   flock held by the supervisor AND the payload: free only when both are gone
#
# Three rules carry the rest. The lock is the truth about a supervisor; a pid is only for signals, and counts
# only with its start time and boot id. Who changes a state writes its mark first and looks at the other's
# second. A name that was claimed never runs again.
#
# Exit status: 0; 1 refused in this state; 64 usage; 65 input missing; 69 host unfit; 73 cannot write.
set -u
umask 077

case $0 in
/*) PROG=$0 ;;
*) if [ -f "$0" ]; then PROG=$PWD/$0; else PROG=$(command -v -- "$0"); fi ;;
esac

CLAIM_S=${MQI_JOB_CLAIM_S:-10}       # a claim without a supervisor counts as LOST after this
SLOT_POLL_S=${MQI_JOB_SLOT_POLL_S:-0.2}
HELD=75                              # our exit status for "flock: someone holds it", apart from its other errors
RESERVE_BYTES=200                    # of a disk that fills up later, for the exit line

fail() { # CODE TEXT...
  _code=$1; shift
  printf 'job.sh: %s\n' "$*" >&2
  exit "$_code"
}

# ---- checks of what the caller says

check_name() { # WHAT NAME: a plain name, that cannot be an option or leave its folder
  case $2 in
  '' | .* | -* | *[!A-Za-z0-9._-]*) fail 64 "bad $1 '$2': letters, digits, '.', '_', '-'; first a letter or digit" ;;
  esac
  [ "${#2}" -le 200 ] || fail 64 "bad $1: longer than 200 characters"
}

check_path() { # WHAT PATH: what may be put into an engine's input file, whose fields are split at blanks
  case $2 in
  /*) ;;
  *) fail 64 "$1 '$2' is not an absolute path" ;;
  esac
  case $2 in
  *[!A-Za-z0-9/._+@=-]*) fail 64 "$1 '$2' has characters other than letters, digits and / . _ + @ = -" ;;
  esac
  case $2/ in
  */../* | */./* | *//*) fail 64 "$1 '$2' has an empty, '.' or '..' part" ;;
  esac
}

check_number() { # WHAT TEXT
  case $2 in '' | *[!0-9]*) fail 64 "$1 '$2' is not a whole number" ;; esac
}

# ---- files

put() { # FILE TEXT: whole or not at all
  if printf '%s\n' "$2" 2>/dev/null >"$1.tmp.$$" && mv -f "$1.tmp.$$" "$1"; then return 0; fi
  rm -f "$1.tmp.$$"
  return 1
}

put_exit() { # JOB TEXT: kept over a power cut, and written even on a full disk
  [ -f "$1/exit" ] && return 0
  # Overwrite the bytes reserved at the start in place (1<> does not truncate), then rename.
  if [ -f "$1/exit.pre" ] && printf "%-${RESERVE_BYTES}s\n" "$2" 2>/dev/null 1<>"$1/exit.pre" &&
    sync "$1/exit.pre" 2>/dev/null && mv -f "$1/exit.pre" "$1/exit"; then
    sync "$1" 2>/dev/null
    return 0
  fi
  _tries=0 # no reserve (copy-on-write file systems need room for it too): wait 10 minutes for room
  until put "$1/exit" "$2" && sync "$1/exit" "$1" 2>/dev/null; do
    [ -f "$1/exit" ] && return 0
    _tries=$((_tries + 1))
    [ "$_tries" -lt "${MQI_JOB_PUT_RETRIES:-600}" ] || return 1
    sleep 1
  done
}

quote() { # ARG...: one line that a shell reads back as the same words
  for _word; do printf "'%s' " "$(printf %s "$_word" | sed "s/'/'\\\\''/g")"; done
}

now() { date +%s.%N; }

# ---- processes

start_time() { # PID: when it started, in clock ticks since boot. A zombie is dead.
  _stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  _stat=${_stat##*) } # the command's name may hold blanks and parentheses: cut at the last one
  # shellcheck disable=SC2086
  set -- $_stat
  [ "$1" != Z ] || return 1
  shift 19
  echo "$1"
}

boot_id() { cat /proc/sys/kernel/random/boot_id; }

recall() { # JOB: what its supervisor and payload wrote about themselves
  boot=- slot=- payload=- payload_start=- started=-
  [ -f "$1/pid" ] && read -r boot _ _ slot _ <"$1/pid"
  [ -f "$1/child" ] && read -r payload payload_start started _ <"$1/child"
  return 0
}

payload_alive() { # JOB, after recall
  [ "$payload" != - ] && [ "$boot" = "$(boot_id)" ] && [ "$(start_time "$payload")" = "$payload_start" ]
}

supervised() { # JOB: does its supervisor live?
  [ -e "$1/lock" ] || return 1
  flock -n -s -E "$HELD" "$1/lock" true 2>/dev/null
  [ $? -eq "$HELD" ]
}

supervisor_gone() { # JOB SECONDS: returns 0 the moment its supervisor is gone, 1 after SECONDS
  flock -s -w "$2" -E "$HELD" "$1/lock" true 2>/dev/null
  [ $? -ne "$HELD" ]
}

strays() { # JOB: pids of all processes that the payload started, also those that left its group
  grep -lszxF "MQI_JOB_FOLDER=$1" /proc/[0-9]*/environ | sed 's|^/proc/||; s|/environ$||'
}

sweep() { # JOB: end what the payload left behind, so that nothing of it runs once it has EXITED
  _left=$(strays "$1")
  # shellcheck disable=SC2086
  [ -z "$_left" ] || kill -s TERM $_left 2>/dev/null
  _n=0
  while [ -n "$_left" ] && [ "$_n" -lt 10 ]; do
    sleep 0.1
    _n=$((_n + 1))
    _left=$(strays "$1")
  done
  # shellcheck disable=SC2086
  [ -z "$_left" ] || kill -s KILL $_left 2>/dev/null
  return 0
}

stop_payload() { # JOB GRACE_S: TERM to the payload's group, KILL after the grace
  recall "$1"
  payload_alive "$1" || return 0
  kill -s TERM -- "-$payload" 2>/dev/null
  if supervised "$1"; then
    supervisor_gone "$1" "$2" && return 0 # it sweeps by itself
  else
    _n=$(($2 * 10))
    while [ "$_n" -gt 0 ] && payload_alive "$1"; do
      sleep 0.1
      _n=$((_n - 1))
    done
  fi
  payload_alive "$1" && kill -s KILL -- "-$payload" 2>/dev/null
  supervised "$1" || sweep "$1"
}

# ---- what a job's state is

describe() { # JOB
  [ -d "$1" ] || { echo ABSENT; return; }
  if [ ! -f "$1/exit" ]; then
    if supervised "$1"; then
      [ -f "$1/exit" ] || { describe_supervised "$1"; return; }
    elif [ ! -f "$1/exit" ]; then # looked again: it may have ended between the two looks
      describe_unsupervised "$1"
      return
    fi
  fi
  rc=- end=- why=- slot=- started=- acked=0
  read -r rc end why slot started _ <"$1/exit"
  [ -e "$1/acked" ] && acked=1
  echo "EXITED rc=$rc why=$why slot=$slot start=$started end=$end acked=$acked"
}

describe_supervised() { # JOB
  recall "$1"
  if [ "$payload" != - ]; then
    echo "RUNNING pid=$payload slot=$slot start=$started"
  else
    why=starting
    [ -f "$1/waiting" ] && read -r why <"$1/waiting"
    echo "PENDING why=$why"
  fi
}

describe_unsupervised() { # JOB
  recall "$1"
  if [ "$boot" = - ]; then # submit was cut off, or is at work right now
    _claimed=$(stat -c %Y "$1" 2>/dev/null) || { echo ABSENT; return; }
    if [ $(($(date +%s) - _claimed)) -lt "$CLAIM_S" ]; then echo CLAIMED; else echo "LOST why=never-started slot=- start=-"; fi
  elif [ "$boot" != "$(boot_id)" ]; then
    echo "LOST why=reboot slot=$slot start=$started"
  elif payload_alive "$1"; then
    echo "ORPHAN pid=$payload slot=$slot start=$started"
  else
    echo "LOST why=supervisor-died slot=$slot start=$started"
  fi
}

# ---- submit, and the three processes of a job: supervisor, payload, and a watch where there is a time limit

environment_names() { # the variables that a payload may see: no token or password of whoever submits
  awk 'BEGIN { for (name in ENVIRON) print name }' </dev/null | grep -E \
    '^(PATH|HOME|SHELL|USER|LOGNAME|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR|LD_LIBRARY_PATH|((CUDA|NVIDIA|MQI|OMP|NUMBA)_|PYTHON)[A-Za-z0-9_]*)$' |
    grep -Ev 'PASSWORD|SECRET|TOKEN|CREDENTIAL|^MQI_JOB_FOLDER$'
}

submit() { # ROOT NAME options -- CMD...
  root=$1 name=$2
  check_name "job name" "$name"
  shift 2
  input='' file='' slots='' kind=none limit=0
  while [ $# -gt 0 ]; do
    case $1 in
    --) shift; break ;;
    -i) input=${2:-}; check_path "input folder" "$input" ;;
    -f) file=${2:-}; check_name "file name" "$file" ;;
    -s) slots=${2:-} ;;
    -k) kind=${2:-} ;;
    -t) limit=${2:-}; check_number "time limit" "$limit" ;;
    *) fail 64 "submit: unknown option '$1'" ;;
    esac
    [ $# -ge 2 ] || fail 64 "submit: $1 needs a value"
    shift 2
  done
  [ $# -gt 0 ] || fail 64 "submit: no command"
  case $kind in
  none) ;;
  gpu | cpu)
    [ -n "$slots" ] || fail 64 "submit: kind $kind needs -s SLOT,..."
    case $slots in *[!A-Za-z0-9._,-]* | .* | *,.* | *,,* | ,* | *,) fail 64 "submit: bad slots '$slots'" ;; esac
    ;;
  *) fail 64 "submit: unknown kind '$kind'" ;;
  esac

  job=$root/jobs/$name
  if [ ! -d "$job" ]; then
    [ -z "$input" ] || [ -d "$input" ] || fail 65 "the input folder $input is not there"
    [ -z "$file" ] || [ -f "$input/$file" ] || fail 65 "$input/$file is not there"
    mkdir -p "$root/jobs" "$root/slots" || fail 73 "cannot write to $root"
  fi
  if ! mkdir "$job" 2>/dev/null; then
    [ -d "$job" ] || fail 73 "cannot make $job (is the disk full?)"
    echo "EXISTS $(describe "$job")"
    return
  fi
  if ! prepare "$job" "$input" "$file" "$@"; then
    rm -rf "$job" # the claim is given back: nothing was started
    fail 73 "cannot write to $job (is the disk full?)"
  fi

  # Nothing of ours keeps an ssh channel open, and the environment holds what was chosen above, no more.
  set -- setsid sh "$PROG" _supervise "$job" "$root/slots" "$kind" "${slots:--}" "$limit" "$@"
  for _name in $(environment_names); do eval "set -- \"$_name=\${$_name}\" \"\$@\""; done
  env -i "$@" </dev/null >/dev/null 2>&1 &
  _n=0
  while [ ! -f "$job/pid" ] && [ ! -f "$job/exit" ] && [ "$_n" -lt 250 ]; do
    sleep 0.02
    _n=$((_n + 1))
  done
  echo "STARTED $(describe "$job")"
}

prepare() { # JOB INPUT FILE CMD...
  _job=$1 _input=$2 _file=$3
  shift 3
  put "$_job/cmd" "$(quote "$@")" && mkdir "$_job/output" || return 1
  [ -n "$_file" ] || return 0
  sed -e "s|@INPUT@|$(escaped "$_input")|g" -e "s|@OUTPUT@|$(escaped "$_job/output")|g" \
    "$_input/$_file" >"$_job/$_file" 2>/dev/null
}

escaped() { printf %s "$1" | sed 's/[&|\\]/\\&/g'; } # for the right side of s|||

supervise() { # JOB SLOTS_FOLDER KIND SLOTS LIMIT_S CMD...: leads a session of its own
  job=$1 slots_folder=$2 kind=$3 slots=$4 limit=$5
  shift 5
  trap '' HUP INT
  exec 9>>"$job/lock"
  flock -w 10 9 || exit 75 # a status probe may hold it for a moment
  [ -f "$job/exit" ] && exit 0 # fenced while we were starting
  slot=- self="$(boot_id) $$ $(start_time $$)"
  # No room for the exit line: do not start. Without pid, this becomes LOST why=never-started.
  printf "%-${RESERVE_BYTES}s\n" - 2>/dev/null >"$job/exit.pre" && sync "$job/exit.pre" 2>/dev/null || exit 73
  put "$job/pid" "$self -" || { put_exit "$job" "73 $(now) no-space - -"; exit 73; }
  if [ "$kind" != none ]; then
    await_slot || { put_exit "$job" "143 $(now) cancelled - -"; exit 0; }
    put "$job/pid" "$self $slot" || { put_exit "$job" "73 $(now) no-space - -"; exit 73; }
  fi

  # The job's lock is closed for the payload (9>&-), the slot's lock (8) is inherited on purpose.
  setsid sh "$PROG" _payload "$job" "$kind" "$slot" "$@" 9>&- </dev/null >>"$job/out" 2>>"$job/err" &
  child=$!
  # Not "test || command &": that puts the list into a subshell, which keeps the locks in some shells.
  if [ "$limit" -gt 0 ]; then
    setsid sh "$PROG" _watch "$job" "$limit" 8>&- 9>&- </dev/null >/dev/null 2>&1 &
  fi
  trap : TERM # a stop of the machine's services first ends the payload, whose end is then still recorded
  while :; do
    wait "$child"
    rc=$?
    kill -s 0 "$child" 2>/dev/null || break
  done
  recall "$job"
  sweep "$job"
  # Its group too, for those that were started with another environment. The number cannot be a
  # stranger's: it is not given out again while the group has a member.
  kill -s KILL -- "-$child" 2>/dev/null
  exec 8>&- # free the slot first: EXITED means that it is free
  why='exit'
  [ "$rc" -gt 128 ] && why=signal
  [ -e "$job/timeout" ] && why=timeout
  [ -e "$job/cancel" ] && why=cancelled
  put_exit "$job" "$rc $(now) $why $slot $started"
}

await_slot() { # sets slot and holds its lock as fd 8; 1 when cancelled meanwhile
  told=''
  while [ ! -e "$job/cancel" ]; do
    why="slots-busy"
    for slot in $(echo "$slots" | tr , ' '); do
      exec 8>>"$slots_folder/$slot.lock"
      if flock -n 8 && { [ "$kind" != gpu ] || gpu_idle "$slot"; }; then
        rm -f "$job/waiting"
        return 0
      fi
      exec 8>&-
    done
    [ "$why" = "$told" ] || { put "$job/waiting" "$why" && told=$why; }
    if [ "$why" = slots-busy ]; then sleep "$SLOT_POLL_S"; else sleep 2; fi # nvidia-smi is not cheap
  done
  return 1
}

gpu_idle() { # UUID, whose lock we hold: whoever computes on it now is a stranger. Sets why.
  command -v nvidia-smi >/dev/null 2>&1 || return 0
  if ! _apps=$(timeout -k 1 10 nvidia-smi --query-compute-apps=gpu_uuid,pid --format=csv,noheader 8>&- 9>&- 2>/dev/null); then
    why=nvidia-smi-failed
    return 1
  fi
  case $_apps in *"$1"*) why=gpu-in-use; return 1 ;; esac
}

payload() { # JOB KIND SLOT CMD...: registers itself BEFORE exec, so that it never runs unrecorded
  job=$1 kind=$2 slot=$3
  shift 3
  put "$job/child" "$$ $(start_time $$) $(now)" || exit 73
  # Cancelled or fenced meanwhile: mark first, look second, on both sides.
  if [ -e "$job/cancel" ] || [ -e "$job/exit" ]; then exit 143; fi
  export MQI_JOB_FOLDER="$job" MQI_SLOT="$slot"
  [ "$kind" != gpu ] || export CUDA_VISIBLE_DEVICES="$slot"
  cd "$job" || exit 73
  exec "$@"
}

watch() { # JOB LIMIT_S: ends the payload after the limit, also when its supervisor has died
  job=$1
  _end=$(($(date +%s) + $2))
  if supervisor_gone "$job" "$2"; then
    recall "$job"
    while [ ! -f "$job/exit" ] && payload_alive "$job" && [ "$(date +%s)" -lt "$_end" ]; do sleep 1; done
  fi
  [ -f "$job/exit" ] && return
  : >"$job/timeout"
  stop_payload "$job" 5
}

# ---- the other verbs

follow() { # JOB OFFSET MARKER
  # Protocol: the output's own bytes; between them, lines "MARKER AT OFFSET" (at least one a second, so
  # that a dead connection shows on both sides) and last "MARKER END OFFSET status". The line feed just
  # before MARKER belongs to it, since the output may stand in the middle of a line.
  job=$1 offset=$2 marker=$3
  _quiet=0
  while :; do
    _state=$(describe "$job") # before the bytes: what was written before the end is sent before the end
    _size=$offset
    [ -f "$job/out" ] && _size=$(stat -c %s "$job/out")
    if [ "$_size" -gt "$offset" ]; then
      tail -c "+$((offset + 1))" "$job/out" | head -c "$((_size - offset))" || exit 1
      offset=$_size
      _quiet=2
    fi
    case $_state in
    EXITED* | LOST* | ABSENT*)
      printf '\n%s END %s %s\n' "$marker" "$offset" "$_state"
      return
      ;;
    esac
    if [ "$_quiet" -ge 2 ]; then
      printf '\n%s AT %s\n' "$marker" "$offset" || exit 1
      _quiet=0
    fi
    # Blocks on the job's own lock: its end is noticed at once, only its output is polled for.
    case $_state in
    RUNNING* | PENDING*) supervisor_gone "$job" 0.5 ;;
    CLAIMED*) sleep 0.1 ;;
    *) sleep 0.5 ;;
    esac
    _quiet=$((_quiet + 1))
  done
}

cancel() { # JOB GRACE_S
  job=$1
  [ -d "$job" ] || { echo ABSENT; return; }
  [ -f "$job/exit" ] || : >"$job/cancel" || fail 73 "cannot write the cancel mark in $job"
  case $(describe "$job") in
  RUNNING* | ORPHAN*) stop_payload "$job" "$2" ;;
  esac
  supervised "$job" && supervisor_gone "$job" 5
  describe "$job"
}

fence() { # JOB: also of a name that is not there, which then never runs
  job=$1
  mkdir -p "$job" || fail 73 "cannot write to $job"
  exec 9>>"$job/lock"
  flock -w 1 9 || { describe "$job"; return 1; }
  if [ ! -f "$job/exit" ]; then
    recall "$job"
    if payload_alive "$job"; then
      exec 9>&-
      describe "$job" # an ORPHAN: cancel it first
      return 1
    fi
    why=fenced
    if [ "$boot" != - ]; then
      if [ "$boot" = "$(boot_id)" ]; then why=fenced:supervisor-died; else why=fenced:reboot; fi
    fi
    put_exit "$job" "-1 $(now) $why $slot $started" || fail 73 "cannot write to $job"
    # A payload that was forked just before its supervisor died either sees the exit file and stops, or
    # has registered by now; and one whose leader has died may have left others of its group.
    recall "$job"
    payload_alive "$job" && kill -s KILL -- "-$payload" 2>/dev/null
    sweep "$job"
  fi
  exec 9>&-
  describe "$job"
}

ack() { # JOB
  case $(describe "$1") in
  EXITED*) : >"$1/acked" || fail 73 "cannot write to $1" ;;
  *) describe "$1"; return 1 ;;
  esac
  describe "$1"
}

list() { # ROOT PREFIX
  for job in "$1/jobs/$2"*/; do
    job=${job%/}
    [ -d "$job" ] || continue
    printf '%s ' "${job##*/}"
    describe "$job"
  done
}

tail_of() { # FILE OFFSET MAX
  [ -f "$1" ] || { echo 0; return; }
  _size=$(stat -c %s "$1") _from=$2
  [ "$_from" -ge 0 ] || _from=$((_size + _from))
  [ "$_from" -ge 0 ] || _from=0
  echo "$_size"
  tail -c "+$((_from + 1))" "$1" | head -c "$3"
}

remove() { # ROOT jobs|input NAME: renamed first, so that a half removed folder is never taken for a job
  case $2 in
  jobs)
    case $(describe "$1/jobs/$3") in
    EXITED* | ABSENT) ;;
    *) fail 1 "job $3 has not ended: $(describe "$1/jobs/$3")" ;;
    esac
    ;;
  input)
    for job in "$1/jobs/$3".a*/; do
      [ -d "$job" ] || continue
      case $(describe "${job%/}") in
      EXITED*) ;;
      *) fail 1 "input $3 is in use by $job: $(describe "${job%/}")" ;;
      esac
    done
    ;;
  *) fail 64 "remove: jobs or input, not '$2'" ;;
  esac
  [ -d "$1/$2/$3" ] || { echo ABSENT; return; }
  _gone=$1/$2/.removing.$3.$$
  if ! mv "$1/$2/$3" "$_gone" || ! rm -rf "$_gone"; then fail 73 "cannot remove $1/$2/$3"; fi
  echo REMOVED
}

selftest() { # ROOT: every thing that the rest relies on, tried for real
  for _tool in awk cat date env flock grep head mkdir mv rm sed setsid sleep stat sync tail timeout tr; do
    command -v "$_tool" >/dev/null || fail 69 "the command $_tool is missing"
  done
  if ! boot_id >/dev/null || ! start_time $$ >/dev/null; then fail 69 "/proc is not Linux's"; fi
  case $(now) in *[!0-9.]*) fail 69 "date does not know %N (coreutils is needed)" ;; esac
  mkdir -p "$1/jobs" "$1/slots" || fail 73 "cannot write to $1"
  _kind=$(stat -f -c %T "$1")
  case $_kind in
  nfs* | cifs | smb* | lustre | gpfs | afs | ceph | *glusterfs*)
    fail 69 "$1 lies on $_kind, where locks are not safe enough: name a folder on a local disk" ;;
  esac
  _probe=selftest.$$
  : >"$1/slots/$_probe" || fail 73 "cannot write to $1/slots"
  sync "$1/slots/$_probe" || fail 69 "sync FILE does not work"
  # shellcheck disable=SC2094
  (flock -n 9 && ! flock -n "$1/slots/$_probe" true) 9>>"$1/slots/$_probe" || fail 69 "flock does not exclude on $1"
  rm -f "$1/slots/$_probe"
  (submit "$1" "$_probe" -- sh -c 'exit 7') >/dev/null
  supervisor_gone "$1/jobs/$_probe" 10
  case $(describe "$1/jobs/$_probe") in
  "EXITED rc=7 why=exit "*) ;;
  *) fail 69 "a trivial job came out as: $(describe "$1/jobs/$_probe")" ;;
  esac
  remove "$1" jobs "$_probe" >/dev/null
  echo OK
}

main() {
  verb=${1:-}
  [ $# -ge 2 ] || fail 64 "usage: job.sh submit|status|list|follow|tail|cancel|fence|ack|remove|selftest ROOT ..."
  shift
  case $verb in
  _supervise) supervise "$@"; return ;;
  _payload) payload "$@"; return ;;
  _watch) watch "$@"; return ;;
  esac
  check_path "workspace" "$1"
  case $verb in
  submit | status | follow | wait | tail | cancel | fence | ack) check_name "job name" "${2:-}" ;;
  esac
  case $verb in
  submit) submit "$@" ;;
  status) describe "$1/jobs/$2" ;;
  list)
    [ -z "${2:-}" ] || check_name prefix "$2"
    list "$1" "${2:-}"
    ;;
  follow | wait)
    check_number offset "${3:-0}"
    follow "$1/jobs/$2" "${3:-0}" "${4:-@@MQI}"
    ;;
  tail)
    check_number offset "$(printf %s "${3:-0}" | sed 's/^-//')"
    check_number size "${4:-65536}"
    case ${5:-out} in out | err) ;; *) fail 64 "tail: out or err, not '$5'" ;; esac
    tail_of "$1/jobs/$2/${5:-out}" "${3:-0}" "${4:-65536}"
    ;;
  cancel)
    check_number grace "${3:-5}"
    cancel "$1/jobs/$2" "${3:-5}"
    ;;
  fence) fence "$1/jobs/$2" ;;
  ack) ack "$1/jobs/$2" ;;
  remove)
    check_name name "${3:-}"
    remove "$1" "$2" "$3"
    ;;
  selftest) selftest "$1" ;;
  *) fail 64 "unknown verb '$verb'" ;;
  esac
}

# Read to the last line before anything runs: the file may be replaced while a job waits.
main "$@"
exit $?
