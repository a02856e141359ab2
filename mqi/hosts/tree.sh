# tree.sh - the host's side of copying folders (mqi/hosts/ssh_tree.py is the other): functions, no commands.
# Needs what job.sh needs, and find and xargs; tar where there is one.
#
# The host never guesses: it says which bytes it has, by SHA-256, and does what it is told. What is uploaded
# grows in input/.UNIT.part and gets its name by one rename, when every file in it has the right hash.

tree_fail() { # CODE TEXT...
  _code=$1; shift
  printf '%s\n' "$*" >&2
  exit "$_code"
}

tree_hashes() { # "HASH  ./PATH" of every file below the working directory, sorted
  # Never without an argument: sha256sum would read our input.
  find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum -- /dev/null |
    LC_ALL=C grep -av '^[0-9a-f]*  /dev/null$'
}

tree_others() { # what is neither a file nor a folder
  find . ! -type d ! -type f "$@"
}

tree_free() { # FOLDER: bytes that may still be used there
  df -Pk -- "$1" | awk 'END { printf "%.0f\n", $4 * 1024 }'
}

tree_lock() { # FILE FOLDER: hold it until the end. Whoever removes a lock file does it while holding it.
  # A holder whose client was cut off may not know it for hours: where its folder has not changed for a
  # minute, it is ended. It leads a process group: sshd made it so.
  _seen='' _rounds=0
  while :; do
    exec 9>>"$1" || tree_fail 73 "cannot write $1"
    if flock -w 5 9; then
      [ "$(stat -c %i -- "$1" 2>/dev/null)" = "$(stat -L -c %i /proc/self/fd/9)" ] && break
      continue
    fi
    _now=$(du -s -- "$2" 2>/dev/null; cat -- "$1")
    if [ "$_now" = "$_seen" ]; then _rounds=$((_rounds + 1)); else _rounds=0 _seen=$_now; fi
    [ "$_rounds" -lt "${MQI_TREE_ROUNDS:-12}" ] || tree_end "$(cat -- "$1")"
  done
  printf '%s %s\n' "$$" "$(tree_started "$$")" >"$1"
}

tree_started() { # PID: when it started; a pid alone may be a stranger's
  sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20
}

tree_end() { # "PID STARTED"
  _pid=${1%% *}
  [ -n "$_pid" ] && [ "$_pid" != "$$" ] && [ "$(tree_started "$_pid")" = "${1#* }" ] || return 0
  kill -s KILL -- "-$_pid" 2>/dev/null || kill -s KILL "$_pid" 2>/dev/null
}

tree_put() { # ROOT UNIT
  # Says "FREE BYTES tar|- OTHERS", the hashes of what is there, and an empty line. Then it is told, by lines:
  #   DROP N     N bytes follow: paths to remove, each ended by NUL; what is no file goes too
  #   FOLDERS N  N bytes follow: folders to make, each ended by NUL
  #   TAR N      N bytes follow: a tar archive of small files
  #   FILE N L   L bytes follow: a path; then N bytes: its content
  #   SUMS N     N bytes follow: what the hashes must be now. The folder gets its name; "DONE" is said
  #   KEEP       it is all there already; "DONE" is said
  place=$1/input/$2 stage=$1/input/.$2.part
  [ -d "$1/input" ] || tree_fail 71 "the workspace $1 is not there"
  tree_lock "$1/input/.$2.lock" "$stage"
  [ ! -L "$place" ] && [ ! -L "$stage" ] || tree_fail 65 "the target $place is a link"
  if [ -d "$place" ]; then
    cd "$place" || tree_fail 73 "cannot enter $place"
  else
    mkdir -p -- "$stage" && cd "$stage" || tree_fail 73 "cannot write to $stage"
  fi
  if command -v tar >/dev/null 2>&1; then _tar=tar; else _tar=-; fi
  printf 'FREE %s %s %s\n' "$(tree_free .)" "$_tar" "$(tree_others | wc -l)"
  tree_hashes
  echo
  while read -r word size length; do
    [ "$word" != KEEP ] || { echo DONE; return; }
    if [ -d "$place" ]; then # not whole: it loses its name until it is
      rm -rf -- "$stage"
      mv -- "$place" "$stage" || tree_fail 73 "cannot rename $place"
    fi
    case $word in
    DROP)
      tree_others -exec rm -f -- {} + # links first: nothing is removed through them
      head -c "$size" | xargs -0 rm -rf --
      find . -depth -mindepth 1 -type d -exec rmdir -- {} + 2>/dev/null
      ;;
    FOLDERS) head -c "$size" | xargs -0 mkdir -p -- || tree_fail 73 "cannot make folders in $stage" ;;
    TAR) head -c "$size" | tar -x -f - --no-same-owner || tree_fail 73 "cannot write to $stage" ;;
    FILE)
      name=$(head -c "$length"; echo x)
      dd of="${name%x}" bs=256k count="$size" iflag=fullblock,count_bytes status=none || tree_fail 73 "cannot write to $stage"
      ;;
    SUMS)
      sums=$(head -c "$size"; echo x)
      # To the disk while it is read back. Many at a time share the file system's commits.
      find . -type f -print0 | xargs -0 -r -n 16 -P 16 sync -- 2>/dev/null &
      found=$(tree_hashes; echo x)
      wait
      [ "$found" = "$sums" ] || tree_fail 66 "what arrived is not what was sent"
      mv -- "$stage" "$place" && sync -- "$1/input" || tree_fail 73 "cannot rename $stage"
      echo DONE
      return
      ;;
    *) tree_fail 64 "unknown word $word" ;;
    esac
  done
}

tree_get() { # ROOT JOB PATH...
  # Says "FILES", "SIZE PATH" of every file asked for, all ended by NUL, and one more NUL. Then it is told, once for each, by lines:
  #   HASH N     N bytes follow: paths, one a line; "SUMS", the hashes are said, and an empty line
  #   SEND N     N bytes follow: paths, one a line; their contents are sent, then as for HASH
  #   END 0
  folder=$1/jobs/$2
  [ -d "$folder" ] && cd "$folder" || tree_fail 67 "job $2 has no folder"
  shift 2
  for path; do
    part=.
    rest=$path
    while [ -n "$rest" ]; do
      part=$part/${rest%%/*}
      case $rest in */*) rest=${rest#*/} ;; *) rest='' ;; esac
      [ ! -L "$part" ] || tree_fail 65 "links are not followed: $path"
    done
    [ -f "$path" ] || [ -d "$path" ] || tree_fail 67 "an expected file is not there: $path"
  done
  for path; do set -- "$@" "./$path"; shift; done
  other=$(find "$@" ! -type d ! -type f | head -n 1)
  [ -z "$other" ] || tree_fail 65 "only files and folders are copied: $other"
  printf 'FILES\0'
  find "$@" -type f -exec stat --printf '%s %n\0' -- {} + | LC_ALL=C sort -zu
  printf '\0'
  while read -r word size; do
    [ "$word" != END ] || return 0
    names=$(head -c "$size")
    case $word in
    HASH)
      echo SUMS
      printf '%s\n' "$names" | tr '\n' '\0' | xargs -0 sha256sum --
      ;;
    SEND) # hashed while it is sent: the pipe holds the hashes back until the bytes are through
      printf '%s\n' "$names" | tr '\n' '\0' | xargs -0 sha256sum -- | {
        printf '%s\n' "$names" | tr '\n' '\0' | xargs -0 cat --
        echo SUMS
        cat
      }
      ;;
    *) tree_fail 64 "unknown word $word" ;;
    esac
    echo
  done
}
