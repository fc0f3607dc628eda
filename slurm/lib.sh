# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # pretrain.sbatch sets and reads variables that stand here
# What pretrain.sbatch is made of. bash 4.4, coreutils, awk and SLURM's commands: nothing that lies in a container.
#
# run_dir/slurm/ holds what must outlive a start:
#   starts       begin|end|final JOB.RESTART SECONDS STEP NODES|CAUSE. CAUSE: signal, node, fault, check; of final: the exit code
#   finished     the overrides by which the run was finished, in the shell's quotes
#   failed_nodes one line for each time that a node failed; one that stands there twice is avoided
#   logs/        JOB.RESTART.rankN.log

say() { echo "$(date '+%F %T') $*"; }

record() { echo "$1 $id $(date +%s) $2 $3" >>"$state/starts"; }

end() { # CODE WHY...: for good
  [ -z "${state:-}" ] || [ ! -e "$state/starts" ] || record final "$(newest_step)" "$1"
  say "ended with $1: ${*:2}"
  exit "$1"
}

give_up() { end 1 "gave up: $*"; }

check_settings() { # those that would else be found wrong when it is too late
  case ${PRETRAIN_SIGNAL:=USR1} in USR1 | USR2 | TERM) ;; *) end 2 "PRETRAIN_SIGNAL=$PRETRAIN_SIGNAL: it is USR1, USR2 or TERM" ;; esac
  case ${PRETRAIN_REQUEUE:=requeue} in
    requeue | chain | none) ;;
    *) end 2 "PRETRAIN_REQUEUE=$PRETRAIN_REQUEUE: it is requeue, chain or none" ;;
  esac
  case ${PRETRAIN_CHECK:=off} in off | report | exclude) ;; *) end 2 "PRETRAIN_CHECK=$PRETRAIN_CHECK: it is off, report or exclude" ;; esac
  case ${PRETRAIN_MAX_RESTARTS:=50} in *[!0-9]*) end 2 "PRETRAIN_MAX_RESTARTS=$PRETRAIN_MAX_RESTARTS is not a whole number" ;; esac
}

run_setup() { # modules, a virtual environment: a site's own shell code, which may use variables that are not set
  local here=$PWD
  [ -n "${PRETRAIN_SETUP:-}" ] || return 0
  set +u
  # shellcheck disable=SC1090
  . "$PRETRAIN_SETUP" || end 2 "PRETRAIN_SETUP=$PRETRAIN_SETUP failed"
  set +e -u -o pipefail # with its `set -e` the first rank that fails would end this shell, without a word or a requeue
  cd "$here" || end 2 "$here is gone"
}

# --- what is trained ---

add_sweep_overrides() { # line SLURM_ARRAY_TASK_ID, counted from 0; xargs takes quotes off as a shell does, and runs nothing
  local line more override
  [ -n "${SLURM_ARRAY_TASK_ID:-}" ] || end 2 "PRETRAIN_SWEEP is for arrays: sbatch --array=0-N"
  line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$PRETRAIN_SWEEP")
  [ -n "$line" ] || end 2 "PRETRAIN_SWEEP=$PRETRAIN_SWEEP has no line for array member $SLURM_ARRAY_TASK_ID, counted from 0"
  # a quote that is not closed: the rest of the line would be missing
  xargs printf '' <<<"$line" || end 2 "PRETRAIN_SWEEP=$PRETRAIN_SWEEP, line of member $SLURM_ARRAY_TASK_ID: $line: a quote is not closed"
  mapfile -d '' -t more < <(xargs printf '%s\0' <<<"$line")
  overrides+=("${more[@]}")
  for override in "${more[@]}"; do
    case $override in run_dir=* | +run_dir=* | ++run_dir=*) own_run_dir=yes ;; esac
  done
}

find_run_dir() { # OVERRIDES... -> run_dir, absolute: a default one must be the same at every restart, and each member's own
  local override
  run_dir=''
  for override in "$@"; do
    case $override in run_dir=* | +run_dir=* | ++run_dir=*) run_dir=${override#*=} ;; esac
  done
  run_dir=${run_dir#[\'\"]} run_dir=${run_dir%[\'\"]}
  if [ -z "$run_dir" ] || [ "$run_dir" = null ]; then
    [ "$PRETRAIN_REQUEUE" != chain ] || end 2 "PRETRAIN_REQUEUE=chain needs run_dir=PATH, which all jobs of the chain share"
    run_dir=runs/$SLURM_JOB_NAME-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}
  fi
  # shellcheck disable=SC2088 # Hydra is given it as it stands
  case $run_dir in "~" | "~/"*) run_dir=$HOME${run_dir#\~} ;; esac
  case $run_dir in /*) ;; *) run_dir=$PWD/$run_dir ;; esac
  [ -n "${own_run_dir:-}" ] || run_dir=$run_dir${SLURM_ARRAY_TASK_ID:+/$SLURM_ARRAY_TASK_ID} # unless the sweep names each
  case $run_dir in *[\'\\]* | *"\${"* | *$'\n'*) end 2 "run_dir=$run_dir: quotes, backslashes and \${ are not supported in it" ;; esac
}

newest_step() { # of a checkpoint that is whole; its manifest is written last
  local file step=0
  for file in "$run_dir"/checkpoints/step_*/manifest.json; do
    [[ $file =~ /step_([0-9]+)/manifest.json$ && -e $file ]] || continue # a copy has another name
    [ "$((10#${BASH_REMATCH[1]}))" -le "$step" ] || step=$((10#${BASH_REMATCH[1]}))
  done
  echo "$step"
}

verdict() { # KEY -> its value; "" where there is none
  sed -n -e "s/.*\"$1\": *\"\(\([^\"\\\\]\|\\\\.\)*\)\".*/\1/p" -e "s/.*\"$1\": *\([0-9a-z]\{1,\}\).*/\1/p" \
    "$run_dir/verdict.json" 2>/dev/null | head -n 1
}

job_field() { scontrol show job -o "$job" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1; }

seconds_of() { # of a time as SLURM writes it; fails where it is "Unknown" (date takes "" for this midnight)
  [ -n "$1" ] && date -d "$1" +%s 2>/dev/null
}

end_if_nothing_is_left() { # also the follow-ups of a chain come here
  local ended queued
  # not those of the last start: one that was to train on, and was stopped before it did, has finished nothing
  if [ "$(verdict exit_code)" = 0 ] && [ "$(printf '%q ' "${overrides[@]}")" = "$(cat "$state/finished" 2>/dev/null)" ]; then
    say "nothing left to do: $run_dir is finished"
    exit 0
  fi
  ended=$(awk '{ last = $0 } END { split(last, f); if (f[1] == "final" && f[5] != 0) print f[3] }' "$state/starts" 2>/dev/null)
  [ -n "$ended" ] || return 0
  queued=$(seconds_of "$(job_field SubmitTime)") || return 0
  [ "$queued" -gt "$ended" ] || { say "nothing left to do: $run_dir was given up after this job was queued"; exit 1; }
}

# --- who trains it ---

find_ranks() { # -> srun_options, ranks (per node), cores (per rank), ranks_told
  local nodes=$SLURM_JOB_NUM_NODES
  srun_options=(--kill-on-bad-exit=1 --export=ALL) # else a node waits for peers that a dead rank has left
  launcher=${PRETRAIN_LAUNCHER:-srun}
  case $launcher in
    srun)
      ranks=${PRETRAIN_RANKS_PER_NODE:-${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}}
      cores=${SLURM_CPUS_PER_TASK:-1}
      ranks_told="$ranks ranks per node by srun"
      if [ -z "${PRETRAIN_RANKS_PER_NODE:-}${SLURM_NTASKS_PER_NODE:-}" ] && [ -n "${SLURM_NTASKS:-}" ]; then
        ranks_told="$SLURM_NTASKS ranks by srun" # --ntasks without --ntasks-per-node: srun deals them
      else
        srun_options+=("--ntasks-per-node=$ranks" "--ntasks=$((ranks * nodes))")
      fi
      export SRUN_CPUS_PER_TASK=$cores # since 22.05 srun does not take sbatch's --cpus-per-task by itself
      ;;
    torchrun)
      ranks=${PRETRAIN_RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-1}}}
      cores=$((SLURM_CPUS_ON_NODE / ranks > 0 ? SLURM_CPUS_ON_NODE / ranks : 1))
      ranks_told="$ranks ranks per node by torchrun"
      srun_options+=(--ntasks-per-node=1 "--ntasks=$nodes" "--cpus-per-task=$SLURM_CPUS_ON_NODE")
      ;;
    *) end 2 "PRETRAIN_LAUNCHER=$launcher: it is srun or torchrun" ;;
  esac
  xargs printf '' <<<"${PRETRAIN_SRUN:-}" || end 2 "PRETRAIN_SRUN=$PRETRAIN_SRUN: a quote is not closed"
  [ -z "${PRETRAIN_SRUN:-}" ] || { mapfile -d '' -t more < <(xargs printf '%s\0' <<<"$PRETRAIN_SRUN") && srun_options+=("${more[@]}"); }
}

fast_interface() { # stdin: ip -o -4 addr show up. Slingshot or InfiniBand; gloo needs one that has an address
  awk '$2 ~ /^(hsn|ib)/ { print $2; exit }'
}

find_settings() { # -> master, port, settings: NAME=value of each rank. The site's own stand last, and win
  local hosts fast site=${PRETRAIN_SITE:-$code/slurm/site.env}
  # No other name will do: a job whose nodes each took themselves for the first would train as so many jobs of one node.
  hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  [ -n "$hosts" ] || end 1 "scontrol names no hosts: no rendezvous"
  master=${hosts%%$'\n'*}${PRETRAIN_HOST_SUFFIX:-}
  # each restart has another one: what took that of the start before may still be there
  port=$((20000 + (SLURM_JOB_ID + 1009 * start) % 10000))
  settings=("MASTER_ADDR=$master" "MASTER_PORT=$port" "OMP_NUM_THREADS=$cores")
  fast=$(ip -o -4 addr show up 2>/dev/null | fast_interface)
  fast=${NCCL_SOCKET_IFNAME:-$fast}
  [ -z "$fast" ] || settings+=("NCCL_SOCKET_IFNAME=$fast" "GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$fast}")
  if [ -e "$site" ] || [ -n "${PRETRAIN_SITE:-}" ]; then read_site "$site"; fi
}

read_site() { # FILE: lines NAME=value, taken as they stand: nothing of it is executed
  local line
  [ -r "$1" ] || end 2 "PRETRAIN_SITE=$1 cannot be read"
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      '' | '#'*) ;;
      PRETRAIN_*) end 2 "$1: $line: this file is for the ranks; export PRETRAIN_* before sbatch" ;;
      *)
        [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || end 2 "$1: $line is not NAME=value"
        settings+=("$line")
        ;;
    esac
  done <"$1"
}

find_container() { # -> srun_options, enter: what stands before a rank's command
  local mounts="$run_dir:$run_dir,$code:$code,$PWD:$PWD${PRETRAIN_MOUNTS:+,$PRETRAIN_MOUNTS}" container=${PRETRAIN_CONTAINER:-none}
  enter=()
  [ "$container" = none ] || [ -n "${PRETRAIN_IMAGE:-}" ] || end 2 "PRETRAIN_CONTAINER=$container needs PRETRAIN_IMAGE"
  case $container in
    none) ;;
    pyxis) srun_options+=("--container-image=$PRETRAIN_IMAGE" "--container-mounts=$mounts" "--container-workdir=$PWD") ;;
    apptainer)
      enter=(apptainer exec --pwd "$PWD" --bind "$mounts")
      [ ! -e /dev/nvidiactl ] || enter+=(--nv)
      [ ! -e /dev/kfd ] || enter+=(--rocm)
      enter+=("$PRETRAIN_IMAGE")
      ;;
    *) end 2 "PRETRAIN_CONTAINER=$container: it is none, pyxis or apptainer" ;;
  esac
}

# A rank's own shell, within the container. Signals are ignored until Python handles them: its first tenths of a second
# would be its end, without a verdict. The log is opened here, since a % in the name of srun's --output is a pattern.
# $0: the log's name up to the rank; $1: the code, which comes before what lies in the working directory (python -P).
# shellcheck disable=SC2016 # it is that shell which expands
RANK_SHELL='trap "" USR1 USR2 TERM; export PYTHONPATH="$1${PYTHONPATH:+:$PYTHONPATH}:$PWD"; shift
exec "$@" >>"$0${RANK:-$SLURM_PROCID}.log" 2>&1'

# A node's, for torchrun. It hands signals on to its ranks and waits for their checkpoints, instead of half a minute.
# $0: ranks per node; $1: host:port; $2: python
# shellcheck disable=SC2016
NODE_SHELL='trap "" USR1 USR2; exec "$2" -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --node-rank="$SLURM_NODEID" \
  --nproc-per-node="$0" --master-addr="${1%:*}" --master-port="${1##*:}" --max-restarts=0 --no-python \
  --signals-to-handle=SIGTERM,SIGINT,SIGUSR1,SIGUSR2 --shutdown-timeout=600 "${@:3}"'

run_on_ranks() { # NAME MODULE ARGUMENTS... -> srun_code
  local python=${PRETRAIN_PYTHON:-python} command
  # env within the container: there its image's variables would rule otherwise, in silence
  command=(bash -c "$RANK_SHELL" "$state/logs/$id.$1" "$code" env "${settings[@]}" "$python" -P -m "${@:2}")
  [ "$launcher" = srun ] || command=(env "${settings[@]}" bash -c "$NODE_SHELL" "$ranks" "$master:$port" "$python" "${command[@]}")
  unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE # of a torchrun that somebody forgot
  srun "${srun_options[@]}" "${enter[@]}" "${command[@]}" & # in the background: bash runs a trap only between two commands
  srun_pid=$!
  [ -z "$caught" ] || forward
  while :; do # each signal ends a wait
    wait "$srun_pid"
    srun_code=$?
    kill -0 "$srun_pid" 2>/dev/null || break
  done
  srun_pid=''
}

forwarding=''
forward() { # to the ranks. They ignore it while they start: it is repeated until they have ended
  [ -z "$forwarding" ] || return 0
  forwarding=yes
  while kill -0 "$srun_pid" 2>/dev/null; do
    # The member's name: SLURM_JOB_ID of an array's last member is the whole array's. Without --batch: steps alone. Where
    # SLURM is about to requeue the job, scancel tries again until its signal meets the ranks of the next start.
    timeout 2 scancel --signal="$PRETRAIN_SIGNAL" "$job" 2>/dev/null
    sleep 3
  done &
}

# --- what comes next ---

end_or_requeue() {
  local node
  case ${result:-none}.$srun_code in
    0.*)
      printf '%q ' "${overrides[@]}" >"$state/finished"
      end 0 "done"
      ;;
    2.* | none.2) end 2 "the command is wrong: see $state/logs/$id.rank0.log" ;;
    none.126 | none.127) end 2 "${PRETRAIN_PYTHON:-python} was not found or cannot be run: PRETRAIN_PYTHON, PRETRAIN_SETUP" ;;
  esac
  # A signal that went to the ranks alone is not caught here; of a node that died SLURM may know before its ranks do
  if [ "${result:-75}" = 75 ] && { [ -n "$caught" ] || [ "$result$fault" = 75 ]; }; then
    requeue signal "$(verdict reason)"
  fi
  node=$(dead_nodes)
  if [ -n "$node" ]; then
    echo "$node" >>"$state/failed_nodes"
    requeue node "failed: $node"
  fi
  [ "$result" != 1 ] || end 1 "a restart will not mend it: see verdict.json"
  compgen -G "$state/logs/$id.rank*.log" >/dev/null || end 1 "srun started no rank"
  [ "$(newest_step)" -gt "$began" ] || [ "$(faults_in_a_row)" = 0 ] ||
    give_up "two starts in a row ended by a fault, without progress"
  requeue fault "the ranks ended by a fault"
}

faults_in_a_row() { # starts that made no progress by their own fault, since the last one that made some
  awk '$1 == "final" { n = 0 } $1 == "begin" { step = $4 }
    $1 == "end" { if ($4 > step) n = 0; else if ($5 == "fault") n++ } END { print n + 0 }' "$state/starts"
}

was_cancelled() { # by its user: neither its time limit nor another job has ended it
  case $(job_field JobState).$(job_field Reason).$(job_field PreemptTime) in
    .* | RUNNING.* | *.TimeLimit.* | *.*.[0-9]*) return 1 ;;
  esac
}

requeue() { # CAUSE WHY: ends this start, and asks for the next
  record end "$(newest_step)" "$1"
  say "this start ended by $1: $2"
  trap '' USR1 USR2 TERM # which scontrol requeue sends
  [ "$PRETRAIN_REQUEUE" = requeue ] || { say "not requeued: PRETRAIN_REQUEUE=$PRETRAIN_REQUEUE" && exit 75; }
  local restarts try
  restarts=$(job_field Restarts)
  if [ "${restarts:-0}" -gt "$start" ]; then
    say "SLURM has requeued the job"
  elif was_cancelled; then
    say "not requeued: the job was cancelled" && exit 75 # scontrol would bring it back to life
  elif [ "$start" -ge "$PRETRAIN_MAX_RESTARTS" ]; then
    give_up "restarted $PRETRAIN_MAX_RESTARTS times (PRETRAIN_MAX_RESTARTS)"
  else
    for try in 1 2 3 4 5 last; do # slurmctld may be away for a moment
      scontrol requeue "$job" && say "requeued" && break
      [ "$try" != last ] || { say "SLURM does not requeue it: PRETRAIN_REQUEUE=chain, see slurm/README.md" && exit 75; }
      sleep 10
    done
  fi
  [ -z "$(bad_nodes)" ] || exclude "$(bad_nodes)"
  exit 0
}

# --- nodes ---

dead_nodes() { # of this job's, now; those that did not answer are reported late
  local _ found
  for _ in 1 2 3 4 5; do
    found=$(sinfo -h -N -n "$SLURM_JOB_NODELIST" -t down,fail,no_respond -o %N | sort -u)
    [ -z "$found" ] || break
    sleep 1
  done
  echo "$found"
}

note_failed_nodes() { # those by which a start ended that has left no word: it was the first host, with its script, that died
  local last nodes since node text
  last=$(tail -n 1 "$state/starts" 2>/dev/null)
  case $last in begin*) read -r _ _ since _ nodes <<<"$last" ;; *) return 0 ;; esac
  for node in $(scontrol show hostnames "$nodes"); do
    text=$(scontrol show node -o "$node") || continue
    if [[ $text =~ \ State=(DOWN|FAIL|[A-Z+]*\*) ]] || has_started_since "$since" "$text"; then
      say "node $node failed in the start before" && echo "$node" >>"$state/failed_nodes"
    fi
  done
}

has_started_since() { # SECONDS, what scontrol says of a node
  local began
  began=$(sed -n 's/.*SlurmdStartTime=\([^ ]*\).*/\1/p' <<<"$2")
  [ "$(seconds_of "$began" || echo 0)" -gt "$1" ]
}

bad_nodes() { # comma-separated
  sort "$state/failed_nodes" 2>/dev/null | uniq -c | awk '$1 >= 2 { print $2 }' | paste -sd, -
}

exclude() { # NODES: a job that runs keeps its nodes, so that this comes after its requeue
  local before
  before=$(job_field ExcNodeList)
  [ "$before" = "(null)" ] && before=''
  say "nodes that are avoided from here on: $1" && scontrol update JobId="$job" ExcNodeList="${before:+$before,}$1"
}

avoid_bad_nodes() { # SLURM itself requeues a job whose node dies, and may give it that node again
  local node bad
  bad=$(bad_nodes)
  for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    case ,$bad, in
      *,"$node",*)
        [ "$PRETRAIN_REQUEUE" = requeue ] || { say "warning: $node has failed twice" && continue; }
        record begin "$(newest_step)" "$SLURM_JOB_NODELIST"
        requeue node "$node has failed twice"
        ;;
    esac
  done
}

avoid_outliers() { # of the health check, three times at most: there may be no better nodes
  [ -s "$state/outliers" ] || return 0
  say "outliers of the health check: $(paste -sd' ' "$state/outliers")"
  [ "$PRETRAIN_CHECK" = exclude ] || return 0
  [ "$(grep -c '^end .* check$' "$state/starts")" -lt 3 ] || { say "warning: they are trained on" && return 0; }
  cat "$state/outliers" "$state/outliers" >>"$state/failed_nodes"
  requeue check "such nodes are not trained on"
}
